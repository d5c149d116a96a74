"""Searches two schedules at once, one recorded and one invented: ``python -m tests.tuner.replay_schedules``.

Portable's times are the committed sweep's, hopper's come from a formula and are scaled so that its best config is a
given number of times as fast as portable's. Prints by how much the best found after a spec's trials is slower than the
best there is, and how many of the trials went to hopper. Like a tune it keeps several proposals under way.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from attnforge.codegen import Config, DType, Pass, Schedule, Variant, fields_of, schedule_of
from attnforge.compilation import Failure
from attnforge.tuner.joint_strategy import JointStrategy
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.strategy import StrategyName
from tests.tuner.replay import SweptSpace, replayed_spaces
from tests.tuner.sweep import H200

SPEEDS = (0.7, 0.9, 1.0, 1.1, 1.3)
"""Of hopper's best config, as multiples of portable's."""
TRIALS, LANES, SEEDS = 24, 8, 3
COSTS: dict[str, dict[object, float]] = {
    "warpgroups": {3: 1.06},
    "block_n": {64: 1.12},
    "stages": {1: 1.25, 3: 1.01, 4: 1.02},
    "ping_pong": {False: 1.08},
    "overlap": {False: 1.25},
    "anchor": {False: 1.05},
    "persistent": {False: 1.03},
}
"""Times as long for a choice of hopper's: invented, in the order of what the study's kernel showed."""


@dataclass(frozen=True)
class TwoSchedules:
    """What is searched: a problem of the sweep, and an invented hopper beside it."""

    portable: SweptSpace
    speed: float

    @cached_property
    def spaces(self) -> dict[Schedule, SearchSpace]:
        definition = schedule_of(Schedule.HOPPER, Pass.FORWARD)
        hopper = SearchSpace(self.portable.spec, definition, DType.BF16, H200.limits)
        return {Schedule.PORTABLE: self.portable, Schedule.HOPPER: hopper}

    @cached_property
    def portable_ms(self) -> float:
        """Of its best config."""
        return min(min(times.values()) for times in self.portable.relative_ms.values())

    @property
    def best_ms(self) -> float:
        return min(self.portable_ms, self.portable_ms / self.speed)

    @cached_property
    def _least_cost(self) -> float:
        return min(self._cost(config) for config in self.spaces[Schedule.HOPPER].configs)

    def outcome(self, variant: Variant) -> Measurement | Failure:
        if variant.schedule is Schedule.PORTABLE:
            return self.portable.outcome(variant.config)
        ms = self.portable_ms / self.speed * self._cost(variant.config) / self._least_cost
        return Measurement({"forward": ms}, runs=1)

    def _cost(self, config: Config) -> float:
        cost = 1 + 0.04 * (zlib.crc32(f"{self.portable.spec.name}{config.name}".encode()) % 101) / 100
        for field, value in fields_of(config).items():
            cost *= COSTS.get(field, {}).get(value, 1.0)
        return cost


def searched(two: TwoSchedules, name: StrategyName, seed: int) -> tuple[float, int]:
    """The share by which the best found is slower than the best there is, and hopper's trials; defaults come first."""
    strategy, known = JointStrategy(name, two.spaces, seed), list[Variant]()
    first = [space.variant(space.default) for space in two.spaces.values()]
    underway = deque[Variant]()
    found = float("inf")
    while len(known) < TRIALS or underway:
        if len(known) < TRIALS and len(underway) < LANES:
            variant = first.pop(0) if first else strategy.propose(known)
            if variant is not None:
                known.append(variant)
                underway.append(variant)
                continue
        variant = underway.popleft()
        outcome = two.outcome(variant)
        strategy.tell(variant, outcome)
        if isinstance(outcome, Measurement):
            found = min(found, outcome.total_ms)
    return found / two.best_ms - 1, sum(variant.schedule is Schedule.HOPPER for variant in known)


def mean_regret(spaces: Sequence[SweptSpace], speed: float, name: StrategyName, seeds: int) -> tuple[float, float]:
    """Means over problems and seeds of what searched() gives."""
    runs = [searched(TwoSchedules(space, speed), name, seed) for space in spaces for seed in range(seeds)]
    return mean(regret for regret, _ in runs), mean(hopper for _, hopper in runs)


def forwards() -> list[SweptSpace]:
    """Some forwards of the sweep, of head dims narrow and wide."""
    return [space for space in replayed_spaces() if space.spec.pass_ is Pass.FORWARD][::3]


if __name__ == "__main__":
    for speed in SPEEDS:
        for name in (StrategyName.TPE, StrategyName.RANDOM):
            regret, hopper = mean_regret(forwards(), speed, name, SEEDS)
            print(
                f"hopper {speed} x as fast, {name}: {regret:.1%} slower than the best, {hopper:.0f} of {TRIALS} trials"
            )

"""Searches whole specs as a tune does, on the committed sweeps of an H200: ``python -m tests.tuner.replay_tune``.

Both schedules are searched together for three sequence lengths that share their trials, several of which are under way
at a time; then the finalists count. Prints for several bounds on the trials how many were taken, and by how much the
best finalist is slower than the best of both sweeps.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from statistics import mean

from attnforge.codegen import AttentionSpec, Schedule, Variant
from attnforge.problem import Problem
from attnforge.tuner.ranking import predictors
from attnforge.tuner.spec_search import SpecSearch
from attnforge.tuner.strategy import StrategyName
from attnforge.tuner.trial import Outcome
from tests.tuner.recorded import RecordedSpace, hopper_spaces, portable_spaces
from tests.tuner.replay import NOISE, noisy
from tests.tuner.sweep import H200

BOUNDS, LANES, SEEDS = (8, 16, 24, 32), (1, 5, 8), 3

Recorded = Mapping[Problem, Mapping[Schedule, RecordedSpace]]
"""What is known of a spec."""


@dataclass
class RecordedStudy:
    """A study of one tuner that nothing is shared with, in memory."""

    outcomes: dict[Variant, Outcome] = field(default_factory=dict)
    claimed: set[Variant] = field(default_factory=set)
    elsewhere: frozenset[Variant] = frozenset()

    def claim(self, variant: Variant) -> None:
        self.claimed.add(variant)

    def record(self, variant: Variant, outcome: Outcome) -> bool:
        self.claimed.discard(variant)
        self.outcomes[variant] = outcome
        return True

    def news(self) -> dict[Variant, Outcome]:
        return {}

    def refresh(self) -> None:
        pass


def recorded_specs() -> Iterator[Recorded]:
    """Every spec and length of which both schedules were swept."""
    hopper = {(space.spec, space.problem): space for space in hopper_spaces()}
    found: dict[AttentionSpec, dict[Problem, dict[Schedule, RecordedSpace]]] = defaultdict(dict)
    for space in portable_spaces():
        other = hopper.get((space.spec, space.problem))
        if other is not None:
            found[space.spec][space.problem] = {Schedule.HOPPER: other, Schedule.PORTABLE: space}
    for of_spec in found.values():
        yield dict(sorted(of_spec.items(), key=lambda pair: pair[0].seqlen_q))


@dataclass(frozen=True)
class Searched:
    """What came of a search."""

    trials: int
    regrets: tuple[float, ...]
    """The share by which the fastest finalist is slower than the fastest of all, by problem."""


def searched(
    recorded: Recorded,
    trials: int,
    lanes: int,
    seed: int,
    noise: float = NOISE,
    strategy: StrategyName = StrategyName.GAUSSIAN,
) -> Searched:
    """Search a spec with so many configs under way, which end in the order in which they began."""
    spaces = next(iter(recorded.values()))
    search = SpecSearch(
        spaces,
        {problem: RecordedStudy() for problem in recorded},  # type: ignore[misc]
        [space.variant(space.default) for space in spaces.values()],
        trials,
        seed,
        strategy,
        {problem: predictors(spaces, problem, H200) for problem in recorded},
    )
    generator, under_way = random.Random(seed), deque[Variant]()

    def try_(variant: Variant) -> None:
        for problem, of_problem in recorded.items():
            outcome = of_problem[variant.schedule].outcome(variant.config)
            search.record(variant, problem, noisy(outcome, generator, noise))

    while True:
        while len(under_way) < lanes and (proposed := search.propose()) is not None:
            under_way.append(proposed)
        if not under_way:
            break
        try_(under_way.popleft())
    tried = search.finished
    for variant in search.recombined():
        try_(variant)
    return Searched(tried, tuple(_regret(search, problem, of_problem) for problem, of_problem in recorded.items()))


def _regret(search: SpecSearch, problem: Problem, spaces: Mapping[Schedule, RecordedSpace]) -> float:
    finalists = search.finalists(problem, search.default)
    fastest = min(spaces[each.schedule].best_ms([each.config]) for each in finalists)
    return fastest / min(space.least_ms for space in spaces.values()) - 1


def main() -> None:
    """Replay everything."""
    specs = list(recorded_specs())
    print(f"{len(specs)} specs, {sum(map(len, specs))} problems, {SEEDS} seeds")
    ways = [*product([StrategyName.GAUSSIAN], LANES), (StrategyName.RANDOM, 1)]
    for (strategy, lanes), bound in product(ways, BOUNDS):
        runs = [searched(each, bound, lanes, seed, NOISE, strategy) for each in specs for seed in range(SEEDS)]
        found = [regret for run in runs for regret in run.regrets]
        print(
            f"{strategy}, {lanes} under way, {bound:2} trials at most: {mean(run.trials for run in runs):4.1f} taken, "
            f"mean {mean(found):6.2%}, worst {max(found):6.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What a search tries next: the config, of whatever schedule, that promises to beat the best known by most."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

import numpy as np

from attnforge.codegen import Config, Schedule, Variant
from attnforge.compilation import Failure
from attnforge.tuner.gaussian_process import SpaceProcess
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import RANKED_TRIALS, Predict, one_field_away, ranked
from attnforge.tuner.search_space import SearchSpace

FAIR_TRIALS = 5
"""Of a schedule, before it is compared with others by what it promises: three and eight find as much on the H200's
sweeps (tests/tuner/replay_tune.py), in one trial fewer and four more; but defaults elsewhere may be further off."""
LEAST_PROMISE = 0.001
"""Share of the best known that a config must promise to be worth its trial. On the H200's sweeps searches that end so
lose nothing against those that go on, and take half of the trials (tests/tuner/replay_tune.py)."""


@dataclass(frozen=True)
class Proposal:
    """A config to try next, of one schedule."""

    variant: Variant
    promise: float
    """Expected improvement, as a share of the best known; infinite before anything is known."""
    tried: int
    """Configs of its schedule that were tried."""


class GaussianStrategy:
    """Bayesian optimisation over the configs of all schedules: each has a process of its own, for its fields mean
    nothing to the others, but what they promise is counted from the same best.

    A schedule begins with the configs that the static model ranks highest or, where it knows nothing, with those beside
    its default; its process says how many of these are worth trying.
    """

    def __init__(
        self,
        spaces: Mapping[Schedule, SearchSpace],
        seed: int,
        costs: Mapping[Schedule, Predict] = MappingProxyType({}),
    ) -> None:
        """``costs`` is what is expected of configs before any was measured, by schedule; where there is nothing,
        ``seed`` settles what to begin with between equals."""
        self._spaces = spaces
        self._processes = {schedule: SpaceProcess(space) for schedule, space in spaces.items()}
        self._starts = {schedule: _start(space, seed, costs.get(schedule)) for schedule, space in spaces.items()}
        self._best_ms: dict[Schedule, float] = dict.fromkeys(spaces, math.inf)

    def propose(self, known: Collection[Variant]) -> Variant | None:
        """A variant that is not among ``known``, of which those without a result are being tried; None when no other
        is worth it, as far as one can tell before these have results."""
        proposals = [proposal for schedule in self._spaces for proposal in self._proposals(schedule, known)]
        best = max(proposals, key=lambda each: (each.promise, -each.tried), default=None)
        return None if best is None else best.variant

    def tell(self, variant: Variant, outcome: Measurement | Failure) -> None:
        """Learn what came of a variant, whoever proposed it; nothing from schedules that are not searched."""
        if variant.schedule not in self._spaces:
            return
        self._processes[variant.schedule].tell(variant.config, outcome)
        if not isinstance(outcome, Failure):
            self._best_ms[variant.schedule] = min(outcome.total_ms, self._best_ms[variant.schedule])

    def _proposals(self, schedule: Schedule, known: Collection[Variant]) -> Iterator[Proposal]:
        """What is worth trying of a schedule, one or none."""
        space, process = self._spaces[schedule], self._processes[schedule]
        tried = {variant.config for variant in known if variant.schedule is schedule and variant.config in process}
        if len(tried) == len(space.configs):
            return
        promise, config = self._most_promising(schedule, tried)
        started = next((each for each in self._starts[schedule] if each not in tried), None)
        leads = started is not None and self._best_ms[schedule] == min(self._best_ms.values())
        if promise >= LEAST_PROMISE or leads:
            yield Proposal(space.variant(config if started is None else started), promise, len(tried))

    def _most_promising(self, schedule: Schedule, tried: set[Config]) -> tuple[float, Config]:
        process, best_ms = self._processes[schedule], min(self._best_ms.values())
        if process.has_times and len(tried) >= FAIR_TRIALS:
            promises = process.expected_improvement(best_ms, tried) / best_ms
            place = int(np.argmax(promises))
            return float(promises[place]), process.configs[place]
        # A schedule of which nothing runs is left to itself while another has something that does.
        is_hopeless = len(tried) >= RANKED_TRIALS and best_ms < math.inf
        return 0.0 if is_hopeless else math.inf, next(each for each in process.configs if each not in tried)


def _start(space: SearchSpace, seed: int, cost: Predict | None) -> tuple[Config, ...]:
    """The configs that a schedule begins with."""
    return tuple(one_field_away(space, seed) if cost is None else islice(ranked(space, cost), RANKED_TRIALS))

"""The search for one spec's best configs: what to try next, what is known, which configs go to the final comparison."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import cycle
from types import MappingProxyType

from attnforge.codegen import AttentionSpec, Schedule, Variant
from attnforge.compilation import Failure
from attnforge.problem import Problem
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import Predict
from attnforge.tuner.recombination import recombined
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.strategy import StrategyName, strategy_of
from attnforge.tuner.study import Study
from attnforge.tuner.trial import Outcome

FINALISTS, NEAR = 3, 1.05
"""Of each problem's search, beside the default and the config in office: at most so many, and none that took more than
so many times as long as the fastest. Medians of one worker are right to 1 or 2 %."""


class SpecSearch:
    """One spec on several problems, which differ in their sizes: a config is compiled once and timed on all of them.

    Each problem has a study (what is known, on disk) and a strategy (what to try, in memory), which take turns.
    Other tuners may share the studies: what is tried is claimed first, and what they find out is learnt as well.
    """

    def __init__(
        self,
        spaces: Mapping[Schedule, SearchSpace],
        studies: Mapping[Problem, Study],
        first: Sequence[Variant],
        trials: int,
        seed: int,
        strategy: StrategyName = StrategyName.GAUSSIAN,
        costs: Mapping[Problem, Mapping[Schedule, Predict]] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            spaces: what may be tried, by schedule; there is at least one.
            studies: by problem, the smallest first; their trials count as done.
            first: what to try before the strategy is asked: the default config, then those of other schedules and
                incumbents. They need not be in ``spaces``.
            trials: configs to try in all, those of ``first`` and of earlier runs included; the whole of the spaces is
                enough.
            seed: of the proposals.
            strategy: what proposes them.
            costs: what is expected of configs before any was measured, by problem and schedule.
        """
        self.spaces = spaces
        self.studies = studies
        self.default = first[0]
        self.trials = min(trials, len({*(v for space in spaces.values() for v in space.variants), *first}))
        self._strategies = {
            problem: strategy_of(strategy, spaces, seed + i, costs.get(problem, {}))
            for i, problem in enumerate(studies)
        }
        self._turns = cycle(self._strategies.values())
        self._proposed: set[Variant] = set()
        # An earlier run may have tried schedules that this one does not search: they are no trials of this one.
        begun = [
            variant
            for study in studies.values()
            for variant in study.outcomes
            if variant.schedule in spaces or variant in first
        ]
        self._queue = deque(v for v in dict.fromkeys((*first, *begun)) if self.missing(v))
        self._finished = {v for v in begun if not self.missing(v)}
        for problem, study in studies.items():
            for variant, outcome in study.outcomes.items():
                self._strategies[problem].tell(variant, outcome)

    @property
    def spec(self) -> AttentionSpec:
        """What is searched for."""
        return self.default.spec

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What configs are timed on."""
        return tuple(self.studies)

    @property
    def finished(self) -> int:
        """Configs that were tried on every problem, failures and earlier runs included."""
        return len(self._finished)

    @property
    def has_begun(self) -> bool:
        """Whether anything has been proposed."""
        return bool(self._proposed)

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to propose, because earlier runs did it all."""
        if self._queue:
            return False
        spent = all(strategy.propose(self._finished) is None for strategy in self._strategies.values())
        return spent or self.finished >= self.trials

    def propose(self) -> Variant | None:
        """What to try next, claimed, and never the same twice; None when the trials are spent or the space is."""
        while (variant := self._next()) is not None:
            if self.claim(variant):
                return variant
        return None

    def claim(self, variant: Variant) -> bool:
        """Whether a config is this tuner's to try on some problem: see to_try()."""
        self._proposed.add(variant)
        for problem in self.missing(variant):
            self.studies[problem].claim(variant)
        self._learn_from_others()
        return bool(self.to_try(variant))

    def to_try(self, variant: Variant) -> tuple[Problem, ...]:
        """The problems that this tuner has claimed a config on, and not finished it."""
        return tuple(problem for problem, study in self.studies.items() if variant in study.claimed)

    @property
    def is_trying(self) -> bool:
        """Whether this tuner has claimed something that it has not finished."""
        return any(study.claimed for study in self.studies.values())

    def waits_for_others(self) -> bool:
        """Whether other tuners still try something. Reads what they have found, and queues what the dead have left."""
        for study in self.studies.values():
            study.refresh()
        self._learn_from_others()
        left = [variant for variant in self._proposed if self.missing(variant)]
        for variant in left:
            if not self._is_under_way(variant):
                self._proposed.discard(variant)
                self._queue.append(variant)
        return bool(self._queue) or any(study.elsewhere for study in self.studies.values())

    def missing(self, variant: Variant) -> tuple[Problem, ...]:
        """The problems that a config was not tried on."""
        return tuple(problem for problem, study in self.studies.items() if variant not in study.outcomes)

    def record(self, variant: Variant, problem: Problem, outcome: Outcome) -> None:
        """Store what came of a trial, at once, and learn from it."""
        if self.studies[problem].record(variant, outcome):
            self._learn(problem, {variant: outcome})

    def measured(self, problem: Problem) -> dict[Variant, Measurement]:
        """The configs that ran on a problem, the fastest first; of equals the first by name, whoever measured which."""
        outcomes = self.studies[problem].outcomes.items()
        ran = [(variant, outcome) for variant, outcome in outcomes if isinstance(outcome, Measurement)]
        return dict(sorted(ran, key=lambda pair: (pair[1].total_ms, pair[0].name)))

    def failures(self) -> dict[Variant, Failure]:
        """The configs that failed on some problem, and how they first did."""
        found: dict[Variant, Failure] = {}
        for study in self.studies.values():
            for variant, outcome in study.outcomes.items():
                if isinstance(outcome, Failure):
                    found.setdefault(variant, outcome)
        return found

    def best_kernel_ms(self, problem: Problem, variant: Variant) -> dict[str, float]:
        """The least milliseconds known, of whatever schedule, of each kernel that fields of ``variant`` shape."""
        known = [measurement.kernel_ms for measurement in self.measured(problem).values()]
        of_kernels = {kernel: [ms[kernel] for ms in known if kernel in ms] for kernel in variant.definition.kernels}
        return {kernel: min(ms) for kernel, ms in of_kernels.items() if ms}

    def recombined(self) -> list[Variant]:
        """For each problem and schedule, the config made of each kernel's best fields, where that is new."""
        found = (self._recombined(problem, space) for problem in self.problems for space in self.spaces.values())
        return [variant for variant in dict.fromkeys(found) if variant is not None and self.missing(variant)]

    def finalists(self, problem: Problem, in_office: Variant) -> list[Variant]:
        """What to compare at the end, as far as each has run: the config in office, the default, and the fastest.

        The fastest are of the schedules that are searched: an earlier run may have tried others.
        """
        measured = self.measured(problem)
        standing = [variant for variant in (in_office, self.default) if variant in measured]
        fastest = [variant for variant in measured if variant.schedule in self.spaces][:FINALISTS]
        near = [each for each in fastest if measured[each].total_ms <= NEAR * measured[fastest[0]].total_ms]
        return list(dict.fromkeys([*standing, *near]))

    def _next(self) -> Variant | None:
        while self._queue:
            variant = self._queue.popleft()
            if variant not in self._proposed and self.missing(variant):
                return variant
        tried = self._finished | self._proposed
        tried = tried.union(*(study.elsewhere for study in self.studies.values()))
        if len(tried) >= self.trials:
            return None
        # One problem may have given up a schedule that another has not.
        proposals = (next(self._turns).propose(tried) for _ in self._strategies)
        return next((variant for variant in proposals if variant is not None), None)

    def _is_under_way(self, variant: Variant) -> bool:
        return any(variant in study.claimed or variant in study.elsewhere for study in self.studies.values())

    def _learn_from_others(self) -> None:
        for problem, study in self.studies.items():
            self._learn(problem, study.news())

    def _learn(self, problem: Problem, outcomes: Mapping[Variant, Outcome]) -> None:
        for variant, outcome in outcomes.items():
            self._strategies[problem].tell(variant, outcome)
            if not self.missing(variant):
                self._finished.add(variant)

    def _recombined(self, problem: Problem, space: SearchSpace) -> Variant | None:
        schedule = space.definition.schedule
        times = {v.config: m.kernel_ms for v, m in self.measured(problem).items() if v.schedule is schedule}
        config = recombined(space, times)
        return None if config is None else space.variant(config)

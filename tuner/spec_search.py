"""The search for one spec's best configs: what to try next, what is known, which configs go to the final comparison."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import cycle

from attnforge.codegen import AttentionSpec, Variant
from attnforge.compilation import Failure
from attnforge.problem import Problem
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import Predict
from attnforge.tuner.recombination import recombined
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.strategy import StrategyName, strategy_of
from attnforge.tuner.study import Study
from attnforge.tuner.trial import Outcome

FINALISTS = 3
"""Of each problem's search, beside the default and the config in office."""


class SpecSearch:
    """One spec on several problems, which differ in their sizes: a config is compiled once and timed on all of them.

    Each problem has a study (what is known, on disk) and a strategy (what to try, in memory), which take turns.
    Other tuners may share the studies: what is tried is claimed first, and what they find out is learnt as well.
    """

    def __init__(
        self,
        space: SearchSpace,
        studies: Mapping[Problem, Study],
        first: Sequence[Variant],
        trials: int,
        seed: int,
        strategy: StrategyName = StrategyName.TPE,
        costs: Mapping[Problem, Predict | None] | None = None,
    ) -> None:
        """
        Args:
            space: what may be tried.
            studies: by problem, the smallest first; their trials count as done.
            first: what to try before the strategy is asked: the default config, then incumbents.
            trials: configs to try in all, those of ``first`` and of earlier runs included; the whole space is enough.
            seed: of the proposals.
            strategy: what proposes them.
            costs: what is expected of configs before any was measured, by problem.
        """
        self.space = space
        self.studies = studies
        self.default = first[0]
        self.trials = min(trials, len({*space.configs, *(variant.config for variant in first)}))
        self._strategies = {
            problem: strategy_of(strategy, space, seed + i, (costs or {}).get(problem))
            for i, problem in enumerate(studies)
        }
        self._turns = cycle(self._strategies.values())
        self._proposed: set[Variant] = set()
        begun = [variant for study in studies.values() for variant in study.outcomes]
        self._queue = deque(v for v in dict.fromkeys((*first, *begun)) if self.missing(v))
        self._finished = {v for v in begun if not self.missing(v)}
        for problem, study in studies.items():
            for variant, outcome in study.outcomes.items():
                self._strategies[problem].tell(variant.config, outcome)

    @property
    def spec(self) -> AttentionSpec:
        """What is searched for."""
        return self.space.spec

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
        return not self._queue and self.finished >= min(self.trials, len(self.space.configs))

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
        """The configs that ran on a problem, the fastest first."""
        outcomes = self.studies[problem].outcomes.items()
        ran = [(variant, outcome) for variant, outcome in outcomes if isinstance(outcome, Measurement)]
        return dict(sorted(ran, key=lambda pair: pair[1].total_ms))

    def failures(self) -> dict[Variant, Failure]:
        """The configs that failed on some problem, and how they first did."""
        found: dict[Variant, Failure] = {}
        for study in self.studies.values():
            for variant, outcome in study.outcomes.items():
                if isinstance(outcome, Failure):
                    found.setdefault(variant, outcome)
        return found

    def best_kernel_ms(self, problem: Problem) -> dict[str, float]:
        """The least milliseconds known of each kernel that config fields shape; empty while nothing has run."""
        measurements = self.measured(problem).values()
        if not measurements:
            return {}
        return {kernel: min(m.kernel_ms[kernel] for m in measurements) for kernel in self.space.kernels}

    def recombined(self) -> list[Variant]:
        """For each problem, the config made of each kernel's best fields, where that is new and promises to be best."""
        found = (self._recombined(problem) for problem in self.problems)
        return [variant for variant in dict.fromkeys(found) if variant is not None and self.missing(variant)]

    def finalists(self, problem: Problem, in_office: Variant) -> list[Variant]:
        """What to compare at the end, as far as each has run: the config in office, the default, and the fastest."""
        measured = self.measured(problem)
        standing = [variant for variant in (in_office, self.default) if variant in measured]
        return list(dict.fromkeys([*standing, *list(measured)[:FINALISTS]]))

    def _next(self) -> Variant | None:
        while self._queue:
            variant = self._queue.popleft()
            if variant not in self._proposed and self.missing(variant):
                return variant
        tried = self._finished | self._proposed
        tried = tried.union(*(study.elsewhere for study in self.studies.values()))
        if len(tried) >= self.trials:
            return None
        config = next(self._turns).propose({variant.config for variant in tried})
        return None if config is None else self.space.variant(config)

    def _is_under_way(self, variant: Variant) -> bool:
        return any(variant in study.claimed or variant in study.elsewhere for study in self.studies.values())

    def _learn_from_others(self) -> None:
        for problem, study in self.studies.items():
            self._learn(problem, study.news())

    def _learn(self, problem: Problem, outcomes: Mapping[Variant, Outcome]) -> None:
        for variant, outcome in outcomes.items():
            self._strategies[problem].tell(variant.config, outcome)
            if not self.missing(variant):
                self._finished.add(variant)

    def _recombined(self, problem: Problem) -> Variant | None:
        measured = self.measured(problem)
        config = recombined(self.space, {variant.config: m.kernel_ms for variant, m in measured.items()})
        return None if config is None else self.space.variant(config)

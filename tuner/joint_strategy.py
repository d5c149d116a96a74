"""What a search tries next among several schedules: first a schedule, then one of its configs."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Container, Mapping
from types import MappingProxyType

from optuna.trial import Trial

from attnforge.codegen import Schedule, Variant
from attnforge.compilation import Failure
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import RANKED_TRIALS, Predict
from attnforge.tuner.sampler import Estimator
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.strategy import StrategyName, strategy_of

HOPELESS = 1.15
"""Times as slow as the best known is a schedule's best, after as many trials as begin its search, when it is given up:
by then the best of a schedule is found to within 1 % in the mean (docs/tuning.md)."""


class JointStrategy:
    """Proposes variants. Each schedule has a strategy of its own, for its fields mean nothing to the others.

    Under tpe the schedule is a choice that an estimator makes from the milliseconds of whole variants: one whose
    configs are never among the fastest is soon left alone, and given up when its best is hopelessly behind: a schedule
    of four configs that are twice as fast need not wait for twenty of another. On the H200's portable sweep beside an
    invented hopper (its best 0.7 to 1.3 times as fast), 24 trials come within 0.3-1.4 % of the best there is, random
    ones within 0.7-1.6 % (means; tests/tuner/replay_schedules.py).
    Under random every config of whatever schedule is as likely as any other; under exhaustive the schedules have their
    turns one after another.
    """

    def __init__(
        self,
        name: StrategyName,
        spaces: Mapping[Schedule, SearchSpace],
        seed: int,
        costs: Mapping[Schedule, Predict] = MappingProxyType({}),
    ) -> None:
        """Equal seeds propose the same after the same results. ``costs`` is as strategy_of() takes it, by schedule."""
        self._name = name
        self._spaces = spaces
        self._random = random.Random(seed)
        self._strategies = {
            schedule: strategy_of(name, space, seed, costs.get(schedule)) for schedule, space in spaces.items()
        }
        chooses = name is StrategyName.TPE and len(spaces) > 1
        self._estimator = Estimator({"schedule": tuple(spaces)}, seed) if chooses else None
        self._asked: dict[Variant, Trial] = {}
        self._tried = Counter[Schedule]()
        self._best_ms: dict[Schedule, float] = {}

    def is_spent(self, known: Container[Variant]) -> bool:
        """Whether nothing is left to propose beside ``known``."""
        return all(
            variant in known
            for schedule, space in self._spaces.items()
            if not self._is_given_up(schedule)
            for variant in space.variants
        )

    def propose(self, known: Container[Variant]) -> Variant | None:
        """A variant that is not among ``known``; None when there is no other left but of schedules given up."""
        if self._estimator is not None:
            fields, trial = self._estimator.ask()
            variant = self._propose_of(Schedule(str(fields["schedule"])), known)
            if variant is not None:
                self._asked[variant] = trial
                return variant
            self._estimator.forget(trial)
        proposed = (self._propose_of(schedule, known) for schedule in self._order(known))
        return next((variant for variant in proposed if variant is not None), None)

    def tell(self, variant: Variant, outcome: Measurement | Failure) -> None:
        """Learn what came of a variant, whoever proposed it; nothing from schedules that are not searched."""
        if variant.schedule not in self._spaces:
            return
        self._strategies[variant.schedule].tell(variant.config, outcome)
        self._tried[variant.schedule] += 1
        milliseconds = None if isinstance(outcome, Failure) else outcome.total_ms
        if milliseconds is not None:
            self._best_ms[variant.schedule] = min(milliseconds, self._best_ms.get(variant.schedule, milliseconds))
        if self._estimator is not None:
            self._estimator.learn(variant, milliseconds, self._asked.pop(variant, None))

    def _order(self, known: Container[Variant]) -> list[Schedule]:
        """Which schedule to ask first, second and so on."""
        schedules = list(self._spaces)
        if self._name is not StrategyName.RANDOM or len(schedules) == 1:
            return schedules
        left = {s: sum(variant not in known for variant in space.variants) for s, space in self._spaces.items()}
        # Efraimidis and Spirakis (2006): drawn without replacement, each by its weight.
        return sorted(schedules, key=lambda schedule: -(self._random.random() ** (1 / max(1, left[schedule]))))

    def _is_given_up(self, schedule: Schedule) -> bool:
        """Random and exhaustive search give up nothing."""
        if self._estimator is None or self._tried[schedule] < RANKED_TRIALS:
            return False
        least = min(self._best_ms.values(), default=math.inf)
        return self._best_ms.get(schedule, math.inf) > HOPELESS * least

    def _propose_of(self, schedule: Schedule, known: Container[Variant]) -> Variant | None:
        if self._is_given_up(schedule):
            return None
        space = self._spaces[schedule]
        config = self._strategies[schedule].propose({v.config for v in space.variants if v in known})
        return None if config is None else space.variant(config)

"""What a search tries next among several schedules: first a schedule, then one of its configs."""

from __future__ import annotations

import random
from collections.abc import Container, Mapping

from optuna.trial import Trial

from attnforge.codegen import Schedule, Variant
from attnforge.compilation import Failure
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.sampler import Estimator
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.strategy import StrategyName, strategy_of


class JointStrategy:
    """Proposes variants. Each schedule has a strategy of its own, for its fields mean nothing to the others.

    Under tpe the schedule is a choice that an estimator makes from the milliseconds of whole variants: one whose
    configs are never among the fastest is soon left alone. On the H200's portable sweep beside an invented hopper (its
    best 0.7 to 1.3 times as fast), 24 trials come within 0.5-2.0 % of the best there is, random ones within 1.3-2.8 %
    (means; tests/tuner/replay_schedules.py).
    Under random every config of whatever schedule is as likely as any other; under exhaustive the schedules have their
    turns one after another.
    """

    def __init__(self, name: StrategyName, spaces: Mapping[Schedule, SearchSpace], seed: int) -> None:
        """Equal seeds propose the same after the same results."""
        self._name = name
        self._spaces = spaces
        self._random = random.Random(seed)
        self._strategies = {schedule: strategy_of(name, space, seed) for schedule, space in spaces.items()}
        chooses = name is StrategyName.TPE and len(spaces) > 1
        self._estimator = Estimator({"schedule": tuple(spaces)}, seed) if chooses else None
        self._asked: dict[Variant, Trial] = {}

    def propose(self, known: Container[Variant]) -> Variant | None:
        """A variant that is not among ``known``; None when there is no other left."""
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
        if self._estimator is not None:
            milliseconds = None if isinstance(outcome, Failure) else outcome.total_ms
            self._estimator.learn(variant, milliseconds, self._asked.pop(variant, None))

    def _order(self, known: Container[Variant]) -> list[Schedule]:
        """Which schedule to ask first, second and so on."""
        schedules = list(self._spaces)
        if self._name is not StrategyName.RANDOM or len(schedules) == 1:
            return schedules
        left = {s: sum(variant not in known for variant in space.variants) for s, space in self._spaces.items()}
        # Efraimidis and Spirakis (2006): drawn without replacement, each by its weight.
        return sorted(schedules, key=lambda schedule: -(self._random.random() ** (1 / max(1, left[schedule]))))

    def _propose_of(self, schedule: Schedule, known: Container[Variant]) -> Variant | None:
        space = self._spaces[schedule]
        config = self._strategies[schedule].propose({v.config for v in space.variants if v in known})
        return None if config is None else space.variant(config)

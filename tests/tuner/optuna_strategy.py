"""What the Gaussian process has to beat: samplers of Optuna's, one kernel at a time."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from attnforge.codegen import Config, Variant
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import Failure
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace, values_of

STARTUP_TRIALS = 6
"""Random proposals before a sampler has something to go by; TPE's own default is 10, half of what a spec can afford."""
ATTEMPTS = 12
"""Proposals of a sampler that may be known already (on spaces this small many are) before a random config is taken."""


def tpe(seed: int) -> BaseSampler:
    """Tree-structured Parzen estimators. What runs is told apart from what is known, so proposals in flight differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True
        )


def cma_es(seed: int) -> BaseSampler:
    """Covariance matrix adaptation, over the fields that are sizes; the others are drawn at random."""
    return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)


class OptunaStrategy:
    """A sampler over a search space's fields.

    The kernels of a backward are launched and timed apart, so each has an estimator of its own (under each choice of
    the fields that they share) which learns from that kernel's milliseconds: two spaces of 36 tiles instead of their
    product.
    """

    def __init__(self, space: SearchSpace, seed: int, sampler: Callable[[int], BaseSampler] = tpe) -> None:
        self._space = space
        self._random = random.Random(seed)
        self._seed = seed
        self._sampler = sampler
        self._shared = Estimator({field: space.choices[field] for field in space.shared_fields}, sampler(seed))
        self._kernels: dict[tuple[str, tuple[Choice, ...]], Estimator] = {}
        self._asked: dict[Config, list[tuple[Estimator, Trial]]] = {}

    def propose(self, known: Collection[Variant]) -> Variant | None:
        """A variant of the space that is not among ``known``; None when there is no other left."""
        tried = {variant.config for variant in known}
        for _ in range(ATTEMPTS):
            config, asked = self._ask()
            if config not in tried and self._space.admits(config):
                self._asked[config] = asked
                return self._space.variant(config)
            for estimator, trial in asked:
                estimator.forget(trial)
        left = [config for config in self._space.configs if config not in tried]
        return self._space.variant(self._random.choice(left)) if left else None

    def tell(self, variant: Variant, outcome: Measurement | Failure) -> None:
        """Learn what came of a variant, whoever proposed it."""
        config = variant.config
        asked = dict(self._asked.pop(config, ()))
        total = None if isinstance(outcome, Failure) else outcome.total_ms
        self._shared.learn(config, total, asked.get(self._shared))
        shared = values_of(config, self._space.shared_fields)
        for kernel in self._space.kernels:
            estimator = self._estimator(kernel, shared)
            kernel_ms = None if isinstance(outcome, Failure) else outcome.kernel_ms[kernel]
            estimator.learn(config, kernel_ms, asked.get(estimator))

    def _ask(self) -> tuple[Config, list[tuple[Estimator, Trial]]]:
        fields, trial = self._shared.ask()
        asked = [(self._shared, trial)]
        shared = tuple(fields[field] for field in self._space.shared_fields)
        for kernel in self._space.kernels:
            estimator = self._estimator(kernel, shared)
            of_kernel, trial = estimator.ask()
            fields |= of_kernel
            asked.append((estimator, trial))
        return self._space.config(fields), asked

    def _estimator(self, kernel: str, shared: tuple[Choice, ...]) -> Estimator:
        key = (kernel, shared)
        if key not in self._kernels:
            choices = {field: self._space.choices[field] for field in self._space.kernels[kernel]}
            self._kernels[key] = Estimator(choices, self._sampler(self._seed + len(self._kernels) + 1))
        return self._kernels[key]


@dataclass(eq=False)
class Estimator:
    """One sampler over a few named choices, held in memory: finished trials live in the Study."""

    choices: dict[str, tuple[Choice, ...]]
    sampler: BaseSampler

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(sampler=self.sampler)
        # A choice is told by its place: sizes are ordered, and their steps are alike on a scale of powers of two.
        self._distributions: dict[str, BaseDistribution] = {
            field: IntDistribution(0, len(values) - 1)
            if all(type(value) is int for value in values)
            else CategoricalDistribution(range(len(values)))
            for field, values in self.choices.items()
        }

    def ask(self) -> tuple[dict[str, Choice], Trial]:
        """What to try, by name, and the trial to hand back to forget() or learn()."""
        trial = self._study.ask(self._distributions)
        return {field: self.choices[field][place] for field, place in trial.params.items()}, trial

    def forget(self, trial: Trial) -> None:
        """A proposal that nobody will try."""
        self._study.tell(trial, state=TrialState.FAIL)  # which samplers leave out

    def learn(self, tried: object, milliseconds: float | None, asked: Trial | None) -> None:
        """Note what came of something that has the choices as attributes.

        Milliseconds of None are a failure, which counts as worse than any time.
        """
        if asked is not None:
            state = TrialState.PRUNED if milliseconds is None else TrialState.COMPLETE
            self._study.tell(asked, milliseconds, state=state)
            return
        values = {field: getattr(tried, field) for field in self.choices}
        if all(value in self.choices[field] for field, value in values.items()):
            self._study.add_trial(self._finished(values, milliseconds))

    def _finished(self, values: dict[str, Any], milliseconds: float | None) -> FrozenTrial:
        return create_trial(
            state=TrialState.PRUNED if milliseconds is None else TrialState.COMPLETE,
            value=milliseconds,
            params={field: self.choices[field].index(value) for field, value in values.items()},
            distributions=self._distributions,
        )

"""What a search tries next: the interface, and the strategies behind it."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from attnforge.codegen import Schedule, Variant
from attnforge.compilation import Failure
from attnforge.tuner.gaussian_strategy import GaussianStrategy
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import Predict
from attnforge.tuner.search_space import SearchSpace


class Strategy(Protocol):
    """Proposes variants of one spec, of whatever schedule, and hears what came of them on one problem."""

    def propose(self, known: Collection[Variant]) -> Variant | None:
        """A variant that is not among ``known``; None when there is no other left that is worth trying."""

    def tell(self, variant: Variant, outcome: Measurement | Failure) -> None:
        """What came of a variant, whoever proposed it."""


class StrategyName(StrEnum):
    """The strategies to choose from."""

    GAUSSIAN = "gaussian"
    """Learns from what was measured, and ends when nothing promises to be faster; see gaussian_strategy.py."""
    RANDOM = "random"
    """Any config of any schedule is as likely as any other."""
    EXHAUSTIVE = "exhaustive"
    """Every config, one schedule after another."""


class FixedOrder:
    """The configs of spaces in an order that results do not change."""

    def __init__(self, spaces: Mapping[Schedule, SearchSpace], seed: int | None) -> None:
        """``seed`` shuffles them; None leaves them in the spaces' order."""
        self._variants = [variant for space in spaces.values() for variant in space.variants]
        if seed is not None:
            random.Random(seed).shuffle(self._variants)

    def propose(self, known: Collection[Variant]) -> Variant | None:
        """The first that is not among ``known``."""
        return next((variant for variant in self._variants if variant not in known), None)

    def tell(self, variant: Variant, outcome: Measurement | Failure) -> None:
        """Nothing is learnt."""


def strategy_of(
    name: StrategyName,
    spaces: Mapping[Schedule, SearchSpace],
    seed: int,
    costs: Mapping[Schedule, Predict] = MappingProxyType({}),
) -> Strategy:
    """The strategy of a name. Equal seeds propose the same after the same results.

    Args:
        name: which.
        spaces: what may be tried, by schedule.
        seed: of a random order; of the Gaussian process it only settles where a schedule without costs begins.
        costs: what is expected of configs before any was measured, by schedule; the Gaussian process begins with it.
    """
    match name:
        case StrategyName.GAUSSIAN:
            return GaussianStrategy(spaces, seed, costs)
        case StrategyName.RANDOM:
            return FixedOrder(spaces, seed)
        case StrategyName.EXHAUSTIVE:
            return FixedOrder(spaces, None)

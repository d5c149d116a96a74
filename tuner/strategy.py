"""What a search tries next: the interface, and the strategies behind it."""

from __future__ import annotations

import random
from collections.abc import Container
from enum import StrEnum
from typing import Protocol

from attnforge.codegen import Config
from attnforge.compilation import Failure
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import Predict, RankedStart, one_field_away, ranked
from attnforge.tuner.sampler import TpeSampler
from attnforge.tuner.search_space import SearchSpace


class Strategy(Protocol):
    """Proposes configs of one search space, and hears what came of them."""

    def propose(self, known: Container[Config]) -> Config | None:
        """A config of the space that is not among ``known``; None when there is no other left."""

    def tell(self, config: Config, outcome: Measurement | Failure) -> None:
        """What came of a config, whoever proposed it."""


class StrategyName(StrEnum):
    """The strategies to choose from."""

    TPE = "tpe"
    """Begins with what the static model ranks first or what is beside the default, then learns from what was measured;
    see ranking.py, sampler.py."""
    RANDOM = "random"
    EXHAUSTIVE = "exhaustive"
    """Every config, in the space's order."""


class FixedOrder:
    """The configs of a space in an order that results do not change."""

    def __init__(self, space: SearchSpace, seed: int | None) -> None:
        """``seed`` shuffles them; None leaves them in the space's order."""
        self._configs = list(space.configs)
        if seed is not None:
            random.Random(seed).shuffle(self._configs)

    def propose(self, known: Container[Config]) -> Config | None:
        """The first that is not among ``known``."""
        return next((config for config in self._configs if config not in known), None)

    def tell(self, config: Config, outcome: Measurement | Failure) -> None:
        """Nothing is learnt."""


def strategy_of(name: StrategyName, space: SearchSpace, seed: int, cost: Predict | None = None) -> Strategy:
    """The strategy of a name. Equal seeds propose the same after the same results.

    ``cost`` is what is expected of configs before any was measured; only TPE takes it into account.
    """
    match name:
        case StrategyName.TPE:
            sampler = TpeSampler(space, seed)
            return RankedStart(one_field_away(space) if cost is None else ranked(space, cost), sampler)
        case StrategyName.RANDOM:
            return FixedOrder(space, seed)
        case StrategyName.EXHAUSTIVE:
            return FixedOrder(space, None)

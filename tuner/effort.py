"""How much to spend on a tune."""

from __future__ import annotations

import os
from dataclasses import dataclass

from attnforge.codegen import Schedule
from attnforge.tuner.strategy import StrategyName


def cores() -> int:
    """How many of this machine's cores this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Bounds of a tune; whichever is met first ends a search."""

    trials: int
    """Configs to try for each spec, those of earlier runs included."""
    budget_s: float
    """Seconds for everything, shared out over the specs."""
    quick: bool = False
    """Whether to leave out choices that seldom win."""
    jobs: int = 1
    """Compiler processes."""
    schedules: tuple[Schedule, ...] = ()
    """Which to search; empty for every one that can do a spec on the target."""
    strategy: StrategyName = StrategyName.GAUSSIAN
    """What proposes the configs."""
    seed: int = 0
    """Of the proposals and of the order of comparisons."""

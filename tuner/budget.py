"""Shares a tune's time out over its specs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

COMPARISON_SHARE = 0.45
"""Of a spec's time, kept for what follows its search: recombined configs, comparisons, the whole accuracy gate. On an
H200 they take about 6 s of the 12 that a spec has of the GPU in a tune of everything."""

EAGERNESS = 2.0
"""Times its share of what is left that a spec may take: most searches end by themselves, in half of their trials."""

OVERTIME = 0.1
"""Share of the budget by which it may be late when a spec begins; later ones are left for another tune."""


class Budget:
    """Seconds for specs of different weights, of which some run at once. What one leaves, the next ones share."""

    def __init__(
        self, seconds: float, weights: Sequence[float], at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._ends = clock() + seconds
        self._last_start = clock() + (1 + OVERTIME) * seconds
        self._waiting = sum(weights)
        self._running = 0.0
        self._at_once = at_once
        self._has_started = False

    @property
    def is_spent(self) -> bool:
        """Whether no further spec should begin; the first may, however little there is."""
        return self._has_started and self._clock() >= self._last_start

    def start(self, weight: float) -> float:
        """When the search of a spec that starts now is to end, on the clock."""
        now = self._clock()
        self._has_started = True
        # Those that run already are taken to be half done.
        ahead = self._waiting + 0.5 * self._running
        share = min(1.0, EAGERNESS * self._at_once * weight / ahead) if ahead > 0 else 1.0
        self._waiting -= weight
        self._running += weight
        return now + max(0.0, self._ends - now) * share * (1 - COMPARISON_SHARE)

    def finish(self, weight: float) -> None:
        """A spec that was started is done."""
        self._running -= weight

    def has_passed(self, moment: float) -> bool:
        """Whether the clock is past ``moment``."""
        return self._clock() >= moment

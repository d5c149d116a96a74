"""Times a config's kernels: cold L2, CUDA events, medians, and no longer than it takes to see that it is no winner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Protocol

import torch

from attnforge.tuner.measurement import Measurement

GLANCE_RUNS = 3
"""Timed runs before a config may be given up."""
CLEARLY_WORSE = 1.5
"""Times the best known, after a glance. Medians of 3 runs move by a few per cent."""
LEAST_RUNS, MOST_RUNS = 7, 25
RUNS_MS = 40.0
"""GPU time to spend on the timed runs, within the bounds above: the standard set has 12 s a spec for everything."""
WARM_UP_MS = 3.0
"""GPU time before the first timed run: clocks drop within milliseconds of idling."""


class Stopwatch(Protocol):
    """Runs a config's kernels in order and says how long each took."""

    def time(self, runs: int) -> list[tuple[float, ...]]:
        """Milliseconds of each kernel, by run."""


class CudaStopwatch:
    """Runs and times launches on a GPU, each run with a cold L2.

    The kernels of a run follow each other as in a real call, with an event between them, so what one leaves in the L2
    serves the next. Runs are queued without waiting; a write over the L2 before each gives the host time to stay ahead.
    """

    def __init__(self, launches: Sequence[Callable[[], object]], flush: torch.Tensor) -> None:
        self._launches = launches
        self._flush = flush

    def time(self, runs: int) -> list[tuple[float, ...]]:
        """Milliseconds of each kernel, by run."""
        all_events = []
        for _ in range(runs):
            self._flush.zero_()
            events = [_event() for _ in range(len(self._launches) + 1)]
            events[0].record()
            for launch, end in zip(self._launches, events[1:], strict=True):
                launch()
                end.record()
            all_events.append(events)
        torch.cuda.synchronize(self._flush.device)
        return [tuple(start.elapsed_time(end) for start, end in pairwise(events)) for events in all_events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def measure(stopwatch: Stopwatch, kernels: Sequence[str], best_ms: Mapping[str, float]) -> Measurement:
    """The median milliseconds of each kernel.

    Args:
        stopwatch: runs the kernels, which have run before: nothing is left to compile or load.
        kernels: their names, in order.
        best_ms: the least milliseconds known, of the kernels that matter. When every one of them takes more than
            CLEARLY_WORSE times that, a glance has to do; one good kernel earns all of them a full measurement.
    """
    glimpse = sum(stopwatch.time(1)[0])
    stopwatch.time(round(min(20.0, WARM_UP_MS / max(glimpse, 1e-3))))
    times = stopwatch.time(GLANCE_RUNS)
    medians = _medians(kernels, times)
    if best_ms and all(medians[kernel] > CLEARLY_WORSE * best for kernel, best in best_ms.items()):
        return Measurement(medians, GLANCE_RUNS, stopped_early=True)
    runs = round(RUNS_MS / max(sum(medians.values()), 1e-3))
    times += stopwatch.time(min(MOST_RUNS, max(LEAST_RUNS, runs)) - GLANCE_RUNS)
    return Measurement(_medians(kernels, times), len(times))


def _medians(kernels: Sequence[str], times: Sequence[tuple[float, ...]]) -> dict[str, float]:
    return {kernel: median(column) for kernel, column in zip(kernels, zip(*times, strict=True), strict=True)}

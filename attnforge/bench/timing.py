"""Times of GPU calls that can be compared: cold L2, interleaved, CUDA events."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Protocol

import torch

Call = Callable[[], object]


class CallFailedError(Exception):
    """One of the calls raised; ``__cause__`` is what."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} failed while it was timed")
        self.name = name


class Timer(Protocol):
    """Measures calls against each other."""

    def measure(self, calls: Mapping[str, Call]) -> dict[str, list[float]]:
        """Milliseconds of every round, by the call's name; as many for each. The calls are warm already.

        Raises CallFailedError when one of them raises.
        """


def interleaved(
    names: Sequence[str], rounds: int, seed: int, time_round: Callable[[list[str]], Mapping[str, float]]
) -> dict[str, list[float]]:
    """Milliseconds of every round, by name. ``time_round`` runs all of them once, in the order that it is given."""
    shuffle = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        order = list(names)
        shuffle.shuffle(order)
        for name, milliseconds in time_round(order).items():
            times[name].append(milliseconds)
    return times


@dataclass(slots=True)
class CudaTimer:
    """Runs the calls in rounds, in a new random order each, so that clocks and heat touch all alike.

    Before each call the L2 is overwritten. A round is queued whole behind some such writes, without waiting: the host
    stays ahead of the GPU, so no call's launch latency is in its time, however slow its Python is.
    """

    device: torch.device
    budget_ms: float = 600.0
    """GPU time to spend on one measure(), flushes not counted."""
    least_rounds: int = 10
    most_rounds: int = 60
    seed: int = 0
    _flush: torch.Tensor = field(init=False)

    LEAD = 10
    """L2 writes ahead of a round: 0.05 ms each on an H200, for the host to queue the first calls meanwhile."""

    def __post_init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size
        self._flush = torch.empty(max(4 * l2_bytes, 64 << 20), dtype=torch.int8, device=self.device)

    def measure(self, calls: Mapping[str, Call]) -> dict[str, list[float]]:
        """Milliseconds of every round, by name."""
        estimate = self.round(list(calls), calls)
        rounds = self._rounds(sum(estimate.values()))
        return interleaved(list(calls), rounds, self.seed, lambda order: self.round(order, calls))

    def _rounds(self, round_ms: float) -> int:
        return min(self.most_rounds, max(self.least_rounds, round(self.budget_ms / max(round_ms, 1e-3))))

    def round(self, order: list[str], calls: Mapping[str, Call]) -> dict[str, float]:
        """Milliseconds of each call in one round. Raises CallFailedError when one of them raises."""
        events = {}
        for _ in range(self.LEAD):
            self._flush.zero_()
        for name in order:
            start, end = _event(), _event()
            self._flush.zero_()
            start.record()
            try:
                calls[name]()
            except Exception as error:
                raise CallFailedError(name) from error
            end.record()
            events[name] = (start, end)
        torch.cuda.synchronize(self.device)
        return {name: start.elapsed_time(end) for name, (start, end) in events.items()}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def microseconds_per_call(call: Call, wait: Callable[[], None], batches: int = 15, calls: int = 200) -> float:
    """Host µs of one call: the median over batches of a batch's mean.

    Args:
        call: what is timed; it must be warm.
        wait: waits for the GPU; between batches, so that its launch queue (about 1,000 entries) never fills and holds
            the host back.
        batches: how many means to take the median of.
        calls: calls of one batch.
    """
    means = []
    for _ in range(batches):
        wait()
        started = perf_counter()
        for _ in range(calls):
            call()
        means.append((perf_counter() - started) / calls * 1e6)
    wait()
    return median(means)

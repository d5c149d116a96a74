"""A GPU whose clock is invented: warming up, throttled now and then, and noisy. What a comparison must see through."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, pi, sin

import numpy as np

from attnforge.bench.timing import interleaved
from attnforge.tuner.comparison import Rounds


@dataclass(frozen=True)
class Disturbances:
    """How far times stray, as shares of them."""

    noise: float = 0.007
    """Scale of each time's own noise, Student's t with three degrees of freedom: its tails are heavy."""
    spikes: float = 0.03
    """How often a time is half as long again."""
    drift: float = 0.05
    """What warming up costs in the end."""
    warming_ms: float = 2000.0
    """Its time constant."""
    throttled: float = 0.15
    """By how much clocks fall in each of two steps of 50 to 300 ms."""
    worker: float = 0.003
    """Standard deviation of each config's offset in each worker."""


QUIET = Disturbances(noise=0.004, spikes=0.0, drift=0.0, throttled=0.0, worker=0.002)
DRIFTING = Disturbances(drift=0.15, throttled=0.0)
THROTTLING = Disturbances(throttled=0.3)
BOOST_LOST = Disturbances(drift=0.08, warming_ms=40.0, throttled=0.0)
"""As an H200 under a long kernel: from 1980 to 1815 MHz within the first rounds."""
HEAVY_TAILED = Disturbances(noise=0.01, spikes=0.06)
KINDS = {
    "quiet": QUIET,
    "usual": Disturbances(),
    "drift": DRIFTING,
    "throttle": THROTTLING,
    "boost": BOOST_LOST,
    "tails": HEAVY_TAILED,
}


@dataclass
class InventedGpu:
    """One worker's view of it. Time passes with each call."""

    config_ms: dict[str, float]
    """On an undisturbed GPU."""
    disturbances: Disturbances
    draw: np.random.Generator
    now_ms: float = 0.0
    offsets: dict[str, float] = field(init=False)
    throttled: list[tuple[float, float]] = field(init=False)
    phase: float = field(init=False)

    def __post_init__(self) -> None:
        self.offsets = {name: exp(self.draw.normal(0, self.disturbances.worker)) for name in self.config_ms}
        self.throttled = [(start, start + self.draw.uniform(50, 300)) for start in self.draw.uniform(0, 500, 2)]
        self.phase = self.draw.uniform(0, 2 * pi)

    def time_round(self, order: list[str]) -> dict[str, float]:
        return {name: self._run(name) for name in order}

    def _run(self, name: str) -> float:
        self.now_ms += 0.3  # the write over the L2
        own = exp(self.disturbances.noise * float(self.draw.standard_t(3)))
        spike = 1.5 if self.draw.random() < self.disturbances.spikes else 1.0
        milliseconds = self.config_ms[name] * self.offsets[name] * own * spike / self._clock()
        self.now_ms += milliseconds
        return milliseconds

    def _clock(self) -> float:
        """What is left of the GPU's speed at this moment."""
        warming = self.disturbances.drift * (1 - exp(-self.now_ms / self.disturbances.warming_ms))
        wave = 0.2 * self.disturbances.drift * sin(self.now_ms / 30 + self.phase)
        steps = sum(start <= self.now_ms < end for start, end in self.throttled)
        return (1 - warming - wave) * (1 - self.disturbances.throttled) ** steps


def compared(
    gains: list[float], kind: str, seed: int, workers: int = 2, rounds: int = 16, ms: float = 2.0
) -> list[Rounds]:
    """What ``workers`` measure of configs that are ``gains`` times as fast as one of ``ms``, each in so many rounds."""
    names = {str(place): ms / gain for place, gain in enumerate(gains)}
    draw = np.random.default_rng(seed)
    found: list[Rounds] = []
    for worker in range(workers):
        gpu = InventedGpu(names, KINDS[kind], draw)
        times = interleaved(list(names), rounds, seed + worker, gpu.time_round)
        found.append([times[name] for name in names])
    return found

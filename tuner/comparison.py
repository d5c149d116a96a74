"""Whether a config is faster than another by more than the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, hypot, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.98
"""Of each interval: up to four challengers try, each with one per cent on the side of a switch, and 5 % is the bar."""
DEVIATIONS = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
WORKER_SPREAD = 0.005
"""Standard deviation of a ratio from worker to worker, taken as known: two workers are too few to estimate it. A
process places its memory once, and with that each config's caches and DRAM banks."""

Rounds = Sequence[Sequence[float]]
"""Milliseconds that one worker measured, by config and round."""


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """A challenger's times over a reference's, both taken in the same rounds."""

    ratio: float
    """Challenger / reference: below 1 is faster."""
    low: float
    high: float
    """Bounds of the ratio's confidence interval."""
    workers_agree: bool
    """Whether every worker, by itself, saw the challenger faster."""

    @property
    def is_faster(self) -> bool:
        """Whether even the interval's upper bound is below 1, and no worker says otherwise."""
        return self.high < 1.0 and self.workers_agree


def compare(challenger_ms: Rounds, reference_ms: Rounds) -> PairedComparison:
    """The paired ratio over all rounds of all workers, and its interval at CONFIDENCE.

    The estimate is Hodges and Lehmann's (1963) of the rounds' log ratios, the interval that of Wilcoxon's signed ranks.
    A round runs its configs close together in random order: drifting clocks and heat cancel in the ratio, and of two
    equal configs either order of any two times is as likely, which is all that signed ranks assume. Unlike a median's
    bootstrap they hold with few rounds and heavy tails. WORKER_SPREAD, as independent of that, widens the interval.

    Args:
        challenger_ms: by worker and round.
        reference_ms: likewise, of the same rounds.
    """
    of_workers = [np.log(np.asarray(c) / np.asarray(r)) for c, r in zip(challenger_ms, reference_ms, strict=True)]
    averages = _walsh_averages(np.concatenate(of_workers))
    middle = float(np.median(averages))
    spread = DEVIATIONS * WORKER_SPREAD / sqrt(len(of_workers))
    low, high = _signed_rank_interval(averages, sum(map(len, of_workers)))
    return PairedComparison(
        ratio=exp(middle),
        low=exp(middle - hypot(middle - low, spread)),
        high=exp(middle + hypot(high - middle, spread)),
        workers_agree=all(np.median(_walsh_averages(ratios)) < 0 for ratios in of_workers),
    )


def winner(workers: Sequence[Rounds]) -> int:
    """Which config to keep, by its place: the first is the one in office, and stays unless the best of the others is
    faster by more than the noise.

    Args:
        workers: each worker's milliseconds, by config and round; the configs are the same in all.
    """
    by_config = list(zip(*workers, strict=True))
    compared = {place: compare(by_config[place], by_config[0]) for place in range(1, len(by_config))}
    faster = [place for place, comparison in compared.items() if comparison.is_faster]
    return min(faster, key=lambda place: compared[place].ratio, default=0)


def _walsh_averages(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The means of all pairs of values, each value with itself included, in order."""
    left, right = np.triu_indices(len(values))
    return np.sort((values[left] + values[right]) / 2)


def _signed_rank_interval(averages: NDArray[np.float64], rounds: int) -> tuple[float, float]:
    """By the normal approximation, which is close from ten rounds on; unbounded when rounds are too few for it."""
    below = rounds * (rounds + 1) / 4 - DEVIATIONS * sqrt(rounds * (rounds + 1) * (2 * rounds + 1) / 24)
    if below < 1:
        return -np.inf, np.inf
    return float(averages[int(below) - 1]), float(averages[-int(below)])

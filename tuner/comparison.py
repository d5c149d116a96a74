"""Whether a config is faster than another by more than the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.99
"""Of the interval: the best of several challengers is picked, so 0.95 would switch falsely more than once in twenty."""
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """A challenger's times over a reference's, both taken in the same rounds."""

    ratio: float
    """Median over the rounds of challenger / reference: below 1 is faster."""
    low: float
    high: float
    """Bounds of the ratio's bootstrap confidence interval."""

    @property
    def is_faster(self) -> bool:
        """Whether even the interval's upper bound is below 1."""
        return self.high < 1.0


def compare(challenger_ms: Sequence[float], reference_ms: Sequence[float], seed: int = 0) -> PairedComparison:
    """The paired median log ratio, and its percentile-bootstrap interval at CONFIDENCE.

    Rounds are interleaved, so drifting clocks and heat touch both of a pair alike and cancel in its ratio; the median
    ignores single disturbed rounds; resampling rounds (Efron 1979) tells how far the median would move by chance.
    """
    ratios = np.log(np.asarray(challenger_ms, dtype=float) / np.asarray(reference_ms, dtype=float))
    draws = np.random.default_rng(seed).integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return PairedComparison(float(np.exp(np.median(ratios))), float(np.exp(low)), float(np.exp(high)))


def winner(rounds_ms: Sequence[Sequence[float]]) -> int:
    """Which config to keep, by its place: the first is the one in office, and stays unless the best of the others is
    faster by more than the noise."""
    challengers = range(1, len(rounds_ms))
    if not challengers:
        return 0
    compared = {place: compare(rounds_ms[place], rounds_ms[0]) for place in challengers}
    best = min(compared, key=lambda place: compared[place].ratio)
    return best if compared[best].is_faster else 0

"""Ratios of a whole run: per pass and peer, the geometric mean and the worst cell."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import geometric_mean

from attnforge.bench.results import Results
from attnforge.codegen import Pass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against one peer in one pass, over the cells in which both have a time."""

    pass_: Pass
    peer: str
    mean_ratio: float
    """Geometric mean of the peer's time over ours: above 1, ours is faster."""
    worst_ratio: float
    worst_cell: str
    cells: int


def compare(results: Results) -> list[Comparison]:
    """Every pass and peer that has at least one common cell, passes outermost, peers in the table's order."""
    comparisons = []
    for pass_ in results.passes():
        cells = [cell for cell in results.cells if cell.pass_ is pass_]
        for peer in results.peers:
            ratios = {cell.name: ratio for cell in cells if (ratio := cell.ratio(peer)) is not None}
            if not ratios:
                continue
            worst = min(ratios, key=ratios.__getitem__)
            mean = geometric_mean(ratios.values())
            comparisons.append(Comparison(pass_, peer, mean, ratios[worst], worst, len(ratios)))
    return comparisons

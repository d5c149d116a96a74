"""A run as grouped bars: one row of panels per pass, one panel per head dim and mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attnforge.bench.results import OURS, Cell, Measurement, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUR_COLOUR = "#d9480f"
PEER_COLOURS = ("#adb5bd", "#868e96", "#74c0fc", "#1c7ed6", "#495057")
INK = "#343a40"


def _tflops(cell: Cell, name: str) -> float | None:
    outcome = cell.outcomes.get(name)
    return outcome.tflops if isinstance(outcome, Measurement) else None


def _colours(results: Results) -> dict[str, str]:
    peers = dict(zip(results.peers, PEER_COLOURS, strict=False))
    return {OURS: OUR_COLOUR, **peers}


def _panel(axes: Axes, cells: list[Cell], results: Results) -> None:
    """Bars of one head dim and mask, grouped by sequence length; ours carry their number, a failure a dash."""
    colours = _colours(results)
    width = 0.84 / len(results.implementations)
    for place, name in enumerate(results.implementations):
        for group, cell in enumerate(cells):
            x = group - 0.42 + (place + 0.5) * width
            height = _tflops(cell, name)
            if height is None:
                axes.text(x, 0, "–", ha="center", va="bottom", fontsize=8, color=INK)
                continue
            axes.bar(x, height, width * 0.92, color=colours[name], zorder=2)
            if name == OURS:
                axes.text(x, height, f"{height:.0f}", ha="center", va="bottom", fontsize=8, color=OUR_COLOUR)
    axes.set_xticks(range(len(cells)), [f"S {cell.seqlen}" for cell in cells], fontsize=9)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(axis="y", color="#e9ecef", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _title(results: Results) -> str:
    """Where, what and when."""
    dtypes = ", ".join(dict.fromkeys(str(cell.dtype) for cell in results.cells))
    tokens = max(cell.batch * cell.seqlen for cell in results.cells)
    hidden = max(cell.heads * cell.head_dim for cell in results.cells)
    where, day = results.environment.gpu, results.created[:10]
    return f"Attention on one {where}: {dtypes}, {tokens} tokens, heads × head dim = {hidden} ({day})"


def draw_picture(results: Results, path: Path) -> None:
    """Write the PNG of ``results``. Its folder is made when missing; results without cells are an error."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = list(dict.fromkeys((cell.head_dim, cell.causal) for cell in results.cells))
    passes = results.passes()
    figure = Figure(figsize=(max(7.0, 3.9 * len(panels)), 3.3 * len(passes) + 1.1), layout="constrained")
    grid = figure.subplots(len(passes), len(panels), squeeze=False, sharey="row")
    for row, pass_ in zip(grid, passes, strict=True):
        for axes, (head_dim, causal) in zip(row, panels, strict=True):
            cells = [c for c in results.cells if (c.pass_, c.head_dim, c.causal) == (pass_, head_dim, causal)]
            _panel(axes, cells, results)
            axes.set_title(f"{pass_}, head dim {head_dim}{', causal' if causal else ''}", fontsize=10, color=INK)
        row[0].set_ylabel("TFLOP/s", color=INK)
    colours = _colours(results)
    handles = [Patch(color=colours[name], label=label) for name, label in results.implementations.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    figure.suptitle(_title(results), fontsize=11, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)

"""The README's speed section from the committed sweep, for as long as no run of `attnforge bench` is committed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from matplotlib.figure import Figure

SWEEP = Path(__file__).parent / "sweeps" / "h200-2026-11-23.json"


@dataclass(frozen=True)
class Cell:
    """One forward problem: the fastest config of the sweep, and SDPA's FlashAttention-2 in the same process."""

    head_dim: int
    causal: bool
    seqlen: int
    ours: float
    peer: float


def cells(document: dict[str, Any]) -> Iterator[Cell]:
    """The head dims that were swept at every sequence length."""
    for peer in document["sdpa_flash"]:
        if peer["head_dim"] not in (64, 128):
            continue
        shape = ("head_dim", "causal", "seqlen")
        rows = (row for row in document["rows"] if row["kernel"] == "forward" and row["tflops"] is not None)
        ours = max(row["tflops"] for row in rows if all(row[key] == peer[key] for key in shape))
        yield Cell(*(peer[key] for key in shape), ours, peer["forward_tflops"])


def section(picture: str) -> str:
    """What stands between the README's markers."""
    document = json.loads(SWEEP.read_text())
    ratios = [cell.ours / cell.peer for cell in cells(document)]
    path = SWEEP.relative_to(Path(__file__).parents[1]).as_posix()
    return (
        f"![Forward TFLOP/s of attnforge and of FlashAttention-2]({picture})\n\n"
        f"The forward kernels are **{geometric_mean(ratios):.2f} ×** as fast as PyTorch's FlashAttention-2 here "
        f"(geometric mean; {min(ratios):.2f} to {max(ratios):.2f}): the fastest config of a sweep of the kernels on "
        f"one {document['gpu']}, cold L2, medians ({document['date']}; torch {document['torch']}, triton "
        f"{document['triton']}; [{path}]({path})). Yours, forward and backward, beside more peers: `attnforge bench`."
    )


def draw(path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    every = list(cells(json.loads(SWEEP.read_text())))
    groups = list(dict.fromkeys((cell.head_dim, cell.causal) for cell in every))
    for axes, group in zip(figure.subplots(1, len(groups), sharey=True), groups, strict=True):
        panel = [cell for cell in every if (cell.head_dim, cell.causal) == group]
        for place, cell in enumerate(panel):
            axes.bar(place - 0.2, cell.ours, 0.36, color="#d9480f", label="attnforge" if place == 0 else None, zorder=2)
            axes.bar(
                place + 0.2, cell.peer, 0.36, color="#adb5bd", label="FlashAttention-2 (SDPA)" if place == 0 else None
            )
            axes.text(place - 0.2, cell.ours, f"{cell.ours:.0f}", ha="center", va="bottom", fontsize=8, color="#d9480f")
        axes.set_xticks(range(len(panel)), [f"S {cell.seqlen}" for cell in panel], fontsize=9)
        axes.set_title(f"head dim {group[0]}{', causal' if group[1] else ''}", fontsize=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
    figure.axes[0].set_ylabel("TFLOP/s, forward, bf16")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=130)

"""``attnforge bench``: ours beside the peers, on this machine's GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from attnforge.bench.case import HEAD_DIMS, QUICK_SEQLENS, SEQLENS, Case, grid
from attnforge.bench.implementations import PEERS, Implementation, implementations
from attnforge.bench.picture import draw_picture
from attnforge.bench.results import OURS, Cell, Failure, Results, write_results
from attnforge.bench.session import check_gpu, run_bench
from attnforge.bench.table import report
from attnforge.cli.selection import DTypeOption
from attnforge.codegen import DType, Pass

WIDTH_OF_THE_TABLE = 140
"""Columns to print in when the output is no terminal, whose width would be guessed as 80."""


HeadDimOption = Annotated[
    list[int] | None, typer.Option(help="Head dim of q, k and v; repeatable.", show_default="64, 128, 256")
]
SeqlenOption = Annotated[
    list[int] | None, typer.Option(help="Queries and keys; repeatable.", show_default="1024, 4096, 16384")
]
PassOption = Annotated[Pass | None, typer.Option("--pass", help="One of the two; both when left out.")]
CausalOption = Annotated[
    bool | None, typer.Option("--causal/--no-causal", help="With or without a causal mask; both when left out.")
]
HeadsOption = Annotated[int | None, typer.Option(help="Heads of q; as many as make 2048 hidden when left out.")]
KvHeadsOption = Annotated[
    int | None, typer.Option(help="Heads of k and v, for grouped queries; those of q when left out.")
]
PeersOption = Annotated[
    str | None,
    typer.Option(help=f"Comma-separated, of {', '.join(PEERS)}; or none. All that are installed when left out."),
]
QuickOption = Annotated[bool, typer.Option("--quick", help=f"Sequence length {QUICK_SEQLENS[0]} alone.")]
HostOption = Annotated[bool, typer.Option("--host", help="Only the host time of a small call.")]
OutOption = Annotated[Path, typer.Option(help="Folder for results.json and results.png.")]


def bench(
    head_dim: HeadDimOption = None,
    seqlen: SeqlenOption = None,
    pass_: PassOption = None,
    causal: CausalOption = None,
    dtype: DTypeOption = DType.BF16,
    heads: HeadsOption = None,
    kv_heads: KvHeadsOption = None,
    peers: PeersOption = None,
    quick: QuickOption = False,
    host: HostOption = False,
    out: OutOption = Path("attnforge-bench"),
) -> None:
    """Time attnforge beside PyTorch's SDPA, FlexAttention and FlashAttention-4.

    All in one run, interleaved, with a cold L2; 16k tokens, 2048 hidden.

    Prints TFLOP/s and ratios (above 1, attnforge is faster), writes every
    number and a picture. Exits 1 when attnforge itself failed somewhere.
    """
    cases = grid(
        head_dims=_unique(head_dim or HEAD_DIMS),
        seqlens=_unique(seqlen or (QUICK_SEQLENS if quick else SEQLENS)),
        causal=(False, True) if causal is None else (causal,),
        dtype=dtype,
        heads=heads,
        kv_heads=kv_heads,
    )
    competitors = implementations(peers)
    check_gpu()
    results = _run([] if host else cases, [pass_] if pass_ else list(Pass), competitors)
    console = Console()
    console.print(report(results), width=None if console.is_terminal else WIDTH_OF_THE_TABLE)
    if not host:
        write_results(results, out / "results.json")
        draw_picture(results, out / "results.png")
        console.print(f"{out / 'results.json'} and results.png, {results.seconds:.0f} s", highlight=False)
    ours = [results.host_cost, *(cell.outcomes[OURS] for cell in results.cells)]
    if any(isinstance(each, Failure) for each in ours):
        raise typer.Exit(1)


def _unique(values: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(values))


def _run(cases: list[Case], passes: list[Pass], competitors: list[Implementation]) -> Results:
    """The run, under a bar that moves with each cell."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("compiling" if cases else "host time", total=len(cases) * len(passes) or None)

        def advance(cell: Cell) -> None:
            progress.update(task, advance=1, description=f"{cell.pass_} {cell.name}")

        return run_bench(cases, passes, competitors, advance)

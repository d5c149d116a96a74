"""``attnforge compile``: the compile gate, which needs no GPU."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Annotated

import triton
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from attnforge.cli.selection import CausalOption, DTypeOption, HeadDimOption, HeadDimVOption, PassOption, selected_specs
from attnforge.codegen import AttentionSpec, DType, Variant
from attnforge.compilation import CompilePool, Failure, Outcome
from attnforge.compilation.pool import DEADLINE_S
from attnforge.problem import Problem
from attnforge.shipping import Shipment, default_variants, tuned_variants
from attnforge.target import Target

BATCH, HEADS = 4, 16
"""Of the representative problem. Triton specialises kernels on neither."""
MAX_SPILL_BYTES = 1024
"""Of one thread. The fastest dK/dV kernel of D=256 on an H200 spills 528; tiles that are too wide spill thousands."""


@dataclass(frozen=True, slots=True)
class Strictness:
    """What a variant that compiles may still not do."""

    max_spill_bytes: int
    allow_serialised: bool

    def objections(self, outcome: Outcome) -> list[str]:
        """Why a variant does not pass; empty when it does."""
        if isinstance(outcome, Failure):
            return [f"{outcome.kind}: {outcome.message}"]
        found = [
            f"{kernel.name} spills {kernel.spill_bytes} bytes a thread, more than {self.max_spill_bytes}"
            for kernel in outcome.kernels
            if kernel.spill_bytes > self.max_spill_bytes
        ]
        return found if self.allow_serialised else [*found, *outcome.serialised]


TargetOption = Annotated[
    str | None,
    typer.Option(
        help="Arch: sm_80, sm_86, sm_89, sm_90, sm_100, sm_120, gfx942 or gfx950. This machine's GPU when left out."
    ),
]
SeqlenOption = Annotated[
    int,
    typer.Option(min=1, help="Of queries and keys. One that tiles do not divide brings in the masks of a last block."),
]
AllOption = Annotated[
    bool, typer.Option("--all", help="Beside the default configs, those that the target's shipped tuned caches name.")
]
SpillOption = Annotated[int, typer.Option(min=0, help="Bytes a thread may keep in memory for want of registers.")]
SerialisedOption = Annotated[
    bool, typer.Option("--allow-serialised", help="Accept kernels in which ptxas has the GPU wait after every wgmma.")
]
JobsOption = Annotated[int | None, typer.Option(min=1, help="Compilers at once. One a core when left out.")]
DeadlineOption = Annotated[float, typer.Option(min=1, help="Seconds that one variant may take.")]


def compile(
    target: TargetOption = None,
    head_dim: HeadDimOption = None,
    head_dim_v: HeadDimVOption = None,
    causal: CausalOption = None,
    pass_: PassOption = None,
    dtype: DTypeOption = DType.BF16,
    seqlen: SeqlenOption = 4096,
    every: AllOption = False,
    max_spill_bytes: SpillOption = MAX_SPILL_BYTES,
    allow_serialised: SerialisedOption = False,
    jobs: JobsOption = None,
    deadline: DeadlineOption = DEADLINE_S,
) -> None:
    """Compile kernels for a target, with or without its GPU, and report what they use.

    The default configs of the shipped specs, or of those that the options choose.

    Exits 1 when a variant does not compile, needs more shared memory than the
    target has, spills too much, or has its wgmma serialised.
    """
    chosen = Target.current() if target is None else Target.for_arch(target)
    specs = selected_specs(head_dim, head_dim_v, causal, pass_)
    variants = _variants(specs, dtype, chosen, every)
    problem = Problem(batch=BATCH, heads=HEADS, kv_heads=HEADS, seqlen_q=seqlen, seqlen_k=seqlen, dtype=dtype)
    started = time.perf_counter()
    with CompilePool(jobs or len(os.sched_getaffinity(0)), deadline) as pool:
        outcomes = _compiled(pool, variants, problem, chosen)
    seconds = time.perf_counter() - started
    strictness = Strictness(max_spill_bytes, allow_serialised)
    objections = {variant: found for variant in variants if (found := strictness.objections(outcomes[variant]))}
    _print_table(outcomes, set(objections), f"{chosen.slug}, triton {triton.__version__}")
    for variant, found in objections.items():
        typer.echo(f"\n{variant.name}\n" + textwrap.indent("\n".join(found), "  "))
    typer.echo(f"{len(variants) - len(objections)} of {len(variants)} variants pass, in {seconds:.0f} s")
    if objections:
        raise typer.Exit(1)


def _variants(specs: Sequence[AttentionSpec], dtype: DType, target: Target, every: bool) -> tuple[Variant, ...]:
    """The default variants of specs, and those that shipped caches name for them."""
    defaults = default_variants(specs, [target], dtype)
    tuned = tuned_variants(Shipment.installed().tuned_dir, target.arch) if every else ()
    return tuple(dict.fromkeys((*defaults, *(variant for variant in tuned if variant.spec in specs))))


def _compiled(
    pool: CompilePool, variants: Sequence[Variant], problem: Problem, target: Target
) -> dict[Variant, Outcome]:
    """What comes of each variant, in their order; a progress bar shows how far it is."""
    futures = {pool.submit(variant, problem, target): variant for variant in variants}
    with Progress(
        TextColumn(f"compiling for {target.arch}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        done = progress.add_task("", total=len(variants))
        for _ in as_completed(futures):
            progress.advance(done)
    return {variant: future.result() for future, variant in futures.items()}


def _print_table(outcomes: Mapping[Variant, Outcome], rejected: Container[Variant], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("variant", "kernel"):
        table.add_column(column, overflow="fold")
    for column in ("shared, bytes", "registers", "spills, bytes", "wgmma", "s"):
        table.add_column(column, justify="right")
    for variant, outcome in outcomes.items():
        style = "red" if variant in rejected else None
        if isinstance(outcome, Failure):
            table.add_row(variant.name, outcome.kind, style=style)
            continue
        for index, kernel in enumerate(outcome.kernels):
            first = index == 0
            table.add_row(
                variant.name if first else "",
                kernel.name,
                str(kernel.shared_bytes),
                str(kernel.registers),
                str(kernel.spill_bytes),
                "serialised" if kernel.serialised else "",
                f"{outcome.seconds:.1f}" if first else "",
                style=style,
            )
    # Piped output has no terminal to fit into: every row stays on its line.
    Console(width=None if sys.stdout.isatty() else 200).print(table)

"""A run as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnforge.bench.results import HOST_BAR_US, OURS, Cell, Failure, HostCost, Measurement, Results
from attnforge.bench.summary import compare
from attnforge.wording import counted

NOTHING = "–"


def _ratio(ratio: float) -> Text:
    return Text(f"{ratio:.2f}×", style="green" if ratio >= 1 else "red")


def _entry(cell: Cell, name: str) -> Text:
    outcome = cell.outcomes.get(name)
    if not isinstance(outcome, Measurement):
        return Text(NOTHING, style="dim")
    text = Text(f"{outcome.tflops:.0f}", style="bold" if name == OURS else "")
    ratio = cell.ratio(name) if name != OURS else None
    return text if ratio is None else Text.assemble(text, "  ", _ratio(ratio))


def cell_table(results: Results) -> Table:
    """TFLOP/s by cell and implementation; behind a peer's, how many times faster ours is."""
    table = Table(title="TFLOP/s, and how many times faster attnforge is", title_justify="left")
    for column in ("pass", "D", "mask", "S"):
        table.add_column(column, justify="left" if column in ("pass", "mask") else "right")
    for label in results.implementations.values():
        table.add_column(label, justify="right")
    table.add_column("decision")
    for pass_ in results.passes():
        for cell in (cell for cell in results.cells if cell.pass_ is pass_):
            numbers = [_entry(cell, name) for name in results.implementations]
            mask = "causal" if cell.causal else "full"
            decision = cell.decision.kind if cell.decision else NOTHING
            table.add_row(str(pass_), str(cell.head_dim), mask, str(cell.seqlen), *numbers, decision)
        table.add_section()
    return table


def summary_table(results: Results) -> Table:
    """Geometric means and worst cells of the ratios."""
    table = Table(title="attnforge against each peer (× faster)", title_justify="left")
    for column in ("pass", "peer", "geometric mean", "worst", "worst cell", "cells"):
        table.add_column(column, justify="left" if column in ("pass", "peer", "worst cell") else "right")
    for each in compare(results):
        peer = results.implementations[each.peer]
        mean, worst = _ratio(each.mean_ratio), _ratio(each.worst_ratio)
        table.add_row(str(each.pass_), peer, mean, worst, each.worst_cell, str(each.cells))
    return table


def host_line(cost: HostCost) -> str:
    """The host's share of a small call, in one line."""
    return (
        f"dispatch overhead {cost.overhead_us:.1f} µs; bar {HOST_BAR_US:.0f} µs "
        f"(a call {cost.dispatched_us:.1f}, a raw held launch {cost.raw_launch_us:.1f}, SDPA {cost.sdpa_us:.1f}; "
        f"with gradients: {cost.dispatched_grad_us:.1f}, SDPA {cost.sdpa_grad_us:.1f})"
    )


def _failure_lines(results: Results) -> Iterator[str]:
    """Each reason once, with how many cells it took."""
    reasons = Counter(
        (results.implementations[name], str(cell.pass_), f"{outcome.kind}: {outcome.reason}")
        for cell in results.cells
        for name, outcome in cell.outcomes.items()
        if isinstance(outcome, Failure)
    )
    for (label, pass_, reason), count in reasons.items():
        yield f"{NOTHING} {label}, {pass_}, {counted(count, 'cell')}: {reason}"


def report(results: Results) -> RenderableType:
    """Everything that a run prints at its end."""
    parts: list[RenderableType] = []
    if results.cells:
        parts += [cell_table(results), *map(Text, _failure_lines(results)), summary_table(results)]
    cost = results.host_cost
    if isinstance(cost, Failure):
        parts.append(Text(f"{NOTHING} dispatch overhead: {cost.kind}: {cost.reason}", style="red"))
    else:
        parts.append(Text(host_line(cost), style="green" if cost.overhead_us <= HOST_BAR_US else "red"))
    kinds = Counter(cell.decision.kind for cell in results.cells if cell.decision)
    if kinds["default"]:
        parts.append(Text(f"{kinds['default']} cells ran default configs: `attnforge tune` finds better ones."))
    return Group(*parts)

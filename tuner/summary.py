"""What a tune brought, as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, log

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnforge.cache.schema import Source, TunedEntry
from attnforge.tuner.result import ProblemResult, SpecResult, Verdict


def summary(results: Sequence[SpecResult]) -> RenderableType:
    """A row for each spec and sequence length, the mean gain, and the failures by kind."""
    table = Table(title="Tuned configs", title_justify="left")
    for column in ("spec", "seqlen", "config"):
        table.add_column(column, overflow="fold")
    for column in ("ms", "TFLOP/s", "x default", "trials"):
        table.add_column(column, justify="right")
    for result in sorted(results, key=lambda result: result.spec.name):
        for each in result.problems:
            table.add_row(*_row(result, each))
        table.add_section()
    lines = (*_gain(results), *_failures(results), *_noisy(results), *_nothing_valid(results))
    return Group(table, *map(Text, lines))


def _row(result: SpecResult, each: ProblemResult) -> tuple[str, ...]:
    name, seqlen, trials = result.spec.name, str(each.problem.seqlen_q), str(result.trials)
    if each.entry is None:
        return name, seqlen, str(each.verdict), "", "", "", trials
    return name, seqlen, each.entry.config.name, *_numbers(each.entry), trials


def _numbers(entry: TunedEntry) -> tuple[str, str, str]:
    ms = "predicted" if entry.median_ms is None else f"{entry.median_ms:.3f}"
    tflops = "" if entry.tflops is None else f"{entry.tflops:.0f}"
    return ms, tflops, "" if entry.gain is None else f"{entry.gain:.2f}"


def _gain(results: Sequence[SpecResult]) -> list[str]:
    entries = [each.entry for result in results for each in result.problems if each.entry is not None]
    gains = [entry.gain for entry in entries if entry.gain is not None]
    if not gains:
        return []
    word = "predicted" if all(entry.source is Source.PREDICTED for entry in entries) else "measured"
    mean = exp(sum(map(log, gains)) / len(gains))
    faster = sum(gain > 1.0 for gain in gains)
    return [f"{word} gain over the default configs: {mean:.3f}x (geometric mean), {faster} of {len(gains)} are faster"]


def _failures(results: Sequence[SpecResult]) -> list[str]:
    kinds = Counter(str(failure.kind) for result in results for failure in result.failures.values())
    tried = sum(result.trials for result in results)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return [f"{sum(kinds.values())} of {tried} trials failed: {listed}"] if kinds else []


def _noisy(results: Sequence[SpecResult]) -> list[str]:
    lines = []
    for result in results:
        for each in result.problems:
            if each.noise:
                done = (
                    "the entry in office stays" if each.verdict is Verdict.NOISY else "written, as there was no other"
                )
                lines.append(
                    f"{result.spec.name}, seqlen {each.problem.seqlen_q}: noisy ({', '.join(each.noise)}), {done}:"
                    " the same command compares again"
                )
    return lines


def _nothing_valid(results: Sequence[SpecResult]) -> list[str]:
    return [
        f"{result.spec.name}, seqlen {each.problem.seqlen_q}: {each.verdict}, nothing written ({each.reason})"
        for result in results
        for each in result.problems
        if each.entry is None
    ]

"""What a tune brought, as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from attnforge.cache.schema import Source, TunedEntry
from attnforge.tuner.result import ProblemResult, SpecResult, Verdict

EARLY = "*"
"""Behind the trials of a search that ended early."""


@dataclass(frozen=True)
class _Summary:
    """The table, or the same without its lines where it is too wide: the names of configs on lines of their own."""

    results: Sequence[SpecResult]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        results = sorted(self.results, key=lambda result: result.spec.name)
        table = _table(results)
        fits = Measurement.get(console, options.update(max_width=1000), table).maximum <= options.max_width
        yield table if fits else _narrow(results)
        yield from map(Text, _lines(results))


def summary(results: Sequence[SpecResult]) -> RenderableType:
    """What became of each spec and sequence length, the mean gain, and the failures by kind."""
    return _Summary(results)


def _table(results: Sequence[SpecResult]) -> Table:
    """A row for each spec and sequence length."""
    table = Table(title="Tuned configs", title_justify="left")
    for column in ("spec", "seqlen", "schedule/config"):
        table.add_column(column)
    for column in ("ms", "TFLOP/s", "x default", "trials"):
        table.add_column(column, justify="right")
    for result in results:
        for each in result.problems:
            table.add_row(result.spec.name, str(each.problem.seqlen_q), _config(each), *_numbers(result, each))
        table.add_section()
    return table


def _narrow(results: Sequence[SpecResult]) -> Text:
    """Two lines for each spec and sequence length."""
    width = max((len(result.spec.name) for result in results), default=0)
    header = _line(width, "spec", "seqlen", "ms", "TFLOP/s", "x default", "trials")
    lines = ["Tuned configs", header, "  schedule/config", ""]
    for result in results:
        for each in result.problems:
            lines.append(_line(width, result.spec.name, str(each.problem.seqlen_q), *_numbers(result, each)))
            lines.append(f"  {_config(each)}")
    return Text("\n".join(lines))


def _line(width: int, name: str, seqlen: str, ms: str, tflops: str, gain: str, trials: str) -> str:
    return f"{name:{width}}  {seqlen:>6}  {ms:>9}  {tflops:>7}  {gain:>9}  {trials:>6}"


def _config(each: ProblemResult) -> str:
    if each.entry is None:
        return str(each.verdict)
    return each.entry.title


def _numbers(result: SpecResult, each: ProblemResult) -> tuple[str, str, str, str]:
    """Milliseconds, TFLOP/s, gain and trials."""
    trials = f"{result.trials}{EARLY if result.ended_early else ''}"
    return ("", "", "", trials) if each.entry is None else (*_speed(each.entry), trials)


def _speed(entry: TunedEntry) -> tuple[str, str, str]:
    ms = "predicted" if entry.median_ms is None else f"{entry.median_ms:.3f}"
    tflops = "" if entry.tflops is None else f"{entry.tflops:.0f}"
    return ms, tflops, "" if entry.gain is None else f"{entry.gain:.2f}"


def _lines(results: Sequence[SpecResult]) -> list[str]:
    """What is to be said below the table."""
    early = [f"{EARLY} out of time: configs were left to try"] if any(each.ended_early for each in results) else []
    return [*early, *_gain(results), *_failures(results), *_noisy(results), *_nothing_valid(results)]


def _gain(results: Sequence[SpecResult]) -> list[str]:
    entries = [each.entry for result in results for each in result.problems if each.entry is not None]
    gains = [entry.gain for entry in entries if entry.gain is not None]
    if not gains:
        return []
    word = "predicted" if all(entry.source is Source.PREDICTED for entry in entries) else "measured"
    mean = exp(sum(map(log, gains)) / len(gains))
    faster = sum(gain > 1.0 for gain in gains)
    are = "is" if len(gains) == 1 else "are"
    return [
        f"{word} gain over the default configs: {mean:.3f}x (geometric mean), {faster} of {len(gains)} {are} faster"
    ]


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

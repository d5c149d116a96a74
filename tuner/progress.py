"""Tells the user how a tune goes: a live display on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from attnforge.target import Target
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.result import SpecResult, Verdict
from attnforge.tuner.spec_search import SpecSearch


class TuneProgress(Protocol):
    """Hears of a tune's events."""

    def began(self, target: Target, devices: int = 1) -> None:
        """The workers have said what they run on, and how many such devices there are."""

    def started(self, search: SpecSearch) -> None:
        """A spec's search begins."""

    def tried(self, search: SpecSearch) -> None:
        """A trial has finished."""

    def comparing(self, search: SpecSearch) -> None:
        """A spec's finalists are being compared."""

    def finished(self, result: SpecResult) -> None:
        """A spec is done, and what was found is written."""

    def close(self) -> None:
        """The tune is over, one way or another."""


def opening(target: Target, specs: int, devices: int) -> str:
    """What is about to happen, in a line."""
    times = f"{devices} x " if devices > 1 else ""
    return f"tuning {specs} specs on {times}{target.name or target.arch} ({target.arch}, {target.sm_count} SMs)"


def standing(search: SpecSearch) -> str:
    """How a search stands, in a line."""
    counts = Counter(str(failure.kind) for failure in search.failures().values())
    failures = f"  failed: {', '.join(f'{n} {kind}' for kind, n in counts.items())}" if counts else ""
    return f"{search.finished}/{search.trials} trials{gain_so_far(search)}{failures}"


def gain_so_far(search: SpecSearch) -> str:
    """The best over the default, on the problem where it gains most; empty while the default has not run."""
    gains = []
    for problem in search.problems:
        default = search.studies[problem].outcomes.get(search.default)
        best = next(iter(search.measured(problem).values()), None)
        if isinstance(default, Measurement) and best is not None:
            gains.append(default.total_ms / best.total_ms)
    return f"  best {max(gains):.2f} x default" if gains else ""


def outcome_of(result: SpecResult) -> str:
    """A finished spec, in a line."""
    parts = []
    for each in result.problems:
        gain = f" {each.entry.gain:.2f}x" if each.entry is not None and each.entry.gain is not None else ""
        words = {
            Verdict.CHOSEN: gain or " ok",
            Verdict.KEPT: " kept",
            Verdict.NOISY: " noisy, so kept",
            Verdict.NOTHING_VALID: " nothing valid",
            Verdict.NOT_COMPARED: " not compared",
        }
        parts.append(f"S{each.problem.seqlen_q}{words[each.verdict]}")
    return f"{', '.join(parts)} ({result.trials} trials, {len(result.failures)} failed)"


class PlainProgress:
    """A line for each spec that begins or ends: for logs and pipes."""

    def __init__(self, console: Console, specs: int) -> None:
        self._console = console
        self._specs = specs
        self._done = 0
        self._began = time.monotonic()

    def began(self, target: Target, devices: int = 1) -> None:
        """One line."""
        self._say(opening(target, self._specs, devices))

    def started(self, search: SpecSearch) -> None:
        """One line."""
        schedules = " and ".join(search.spaces)
        self._say(f"{search.spec.name}: {len(search.problems)} problems, up to {search.trials} trials of {schedules}")

    def tried(self, search: SpecSearch) -> None:
        """No line: there are thousands of trials."""

    def comparing(self, search: SpecSearch) -> None:
        """One line."""
        self._say(f"{search.spec.name}: {standing(search)}; comparing the best")

    def finished(self, result: SpecResult) -> None:
        """One line."""
        self._done += 1
        self._say(f"[{self._done}/{self._specs}] {result.spec.name}: {outcome_of(result)}")

    def close(self) -> None:
        """Nothing to clear away."""

    def _say(self, line: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:6.0f} s  {line}", markup=False, highlight=False)


class LiveProgress:
    """One bar for all specs with the time left, one for each spec that is being searched."""

    def __init__(self, console: Console, specs: int, budget_s: float | None) -> None:
        self._number = specs
        self._ends = None if budget_s is None else time.monotonic() + budget_s
        self._bars: dict[str, TaskID] = {}
        self._failures: Counter[str] = Counter()
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[words]}"),
            console=console, transient=True,
        )  # fmt: skip
        self._specs = self._progress.add_task("specs", total=specs, words="")
        self._progress.start()

    def began(self, target: Target, devices: int = 1) -> None:
        """A line that stays."""
        self._progress.console.print(opening(target, self._number, devices), markup=False, highlight=False)

    def started(self, search: SpecSearch) -> None:
        """A bar of its own."""
        name = search.spec.name
        self._bars[name] = self._progress.add_task(name, total=search.trials, words="", completed=search.finished)

    def tried(self, search: SpecSearch) -> None:
        """Moves the bar on."""
        self._progress.update(self._bars[search.spec.name], completed=search.finished, words=standing(search))
        self._progress.update(self._specs, words=self._left())

    def comparing(self, search: SpecSearch) -> None:
        """Says so beside the bar."""
        self._progress.update(self._bars[search.spec.name], words=f"comparing the best{gain_so_far(search)}")

    def finished(self, result: SpecResult) -> None:
        """The bar makes way for a line that stays."""
        if result.spec.name in self._bars:
            self._progress.remove_task(self._bars.pop(result.spec.name))
        self._failures.update(str(failure.kind) for failure in result.failures.values())
        self._progress.advance(self._specs)
        self._progress.console.print(f"{result.spec.name}: {outcome_of(result)}", markup=False, highlight=False)

    def close(self) -> None:
        """Takes the bars off the screen."""
        self._progress.stop()

    def _left(self) -> str:
        failed = "".join(f"  {n} {kind}" for kind, n in self._failures.items())
        words = f"  failed: {failed}" if failed else ""
        if self._ends is None:
            return words
        seconds = max(0, round(self._ends - time.monotonic()))
        return f"about {seconds // 60}:{seconds % 60:02d} left{words}"


def progress_for(console: Console, specs: int, budget_s: float | None) -> TuneProgress:
    """The display that suits a console."""
    return LiveProgress(console, specs, budget_s) if console.is_terminal else PlainProgress(console, specs)

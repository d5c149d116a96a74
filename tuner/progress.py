"""Tells the user how a tune goes: a live display on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from attnforge.codegen import AttentionSpec, Schedule
from attnforge.target import Target
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.result import SpecResult, Verdict
from attnforge.tuner.spec_search import SpecSearch
from attnforge.wording import counted

BAR_WIDTH = 10
"""Columns: with the longest phase and a spec's name, a row fits into 80."""


class Phase(StrEnum):
    """What is done for a spec. Configs are compiled while others are measured: the last of these counts."""

    WAITING = "waiting for others"
    COMPILING = "compiling"
    MEASURING = "measuring"
    COMPARING = "comparing"
    CHECKING = "checking numerics"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a spec is."""

    spec: AttentionSpec
    problems: int
    schedules: tuple[Schedule, ...]
    trials: int
    """At most."""
    finished: int = 0
    """Trials that are."""
    gain: float | None = None
    """The best over the default, on the problem where it gains most; None while the default has not run."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By kind."""


class TuneProgress(Protocol):
    """Hears of a tune's events."""

    def starting(self) -> None:
        """The tune begins: workers are started, and asked what they run on."""

    def began(self, target: Target, devices: int = 1) -> None:
        """The workers have said what they run on, and how many such devices there are."""

    def started(self, standing: Standing) -> None:
        """Work on a spec begins."""

    def tried(self, standing: Standing) -> None:
        """A trial has finished."""

    def during(self, spec: AttentionSpec, phase: Phase) -> AbstractContextManager[None]:
        """What is done for a started spec while the context lasts; several may overlap."""

    def finished(self, result: SpecResult) -> None:
        """A spec is done, and what was found is written."""

    def close(self) -> None:
        """The tune is over, one way or another."""


def opening(target: Target, specs: int, devices: int) -> str:
    """What is about to happen, in a line."""
    times = f"{devices} x " if devices > 1 else ""
    where = f"{times}{target.name or target.arch} ({target.arch}, {target.sm_count} SMs)"
    return f"tuning {counted(specs, 'spec')} on {where}"


def standing_of(search: SpecSearch) -> Standing:
    """How far a search is."""
    gains = []
    for problem in search.problems:
        default = search.studies[problem].outcomes.get(search.default)
        best = next(iter(search.measured(problem).values()), None)
        if isinstance(default, Measurement) and best is not None:
            gains.append(default.total_ms / best.total_ms)
    return Standing(
        spec=search.spec,
        problems=len(search.problems),
        schedules=tuple(search.spaces),
        trials=search.trials,
        finished=search.finished,
        gain=max(gains, default=None),
        failures=Counter(str(failure.kind) for failure in search.failures().values()),
    )


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
    late = ", out of time" if result.ended_early else ""
    return f"{', '.join(parts)} ({counted(result.trials, 'trial')}, {len(result.failures)} failed{late})"


def _gain(standing: Standing) -> str:
    return "" if standing.gain is None else f"best {standing.gain:.2f} x default"


def _failed(failures: Mapping[str, int]) -> str:
    return f"failed: {', '.join(f'{count} {kind}' for kind, count in failures.items())}" if failures else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


class PlainProgress:
    """A line for each spec that begins, is compared, or ends: for logs and pipes."""

    def __init__(self, console: Console, specs: int) -> None:
        self._console = console
        self._specs = specs
        self._done = 0
        self._began = time.monotonic()
        self._standings: dict[AttentionSpec, Standing] = {}
        self._checked: set[AttentionSpec] = set()

    def starting(self) -> None:
        """One line."""
        self._say("starting workers")

    def began(self, target: Target, devices: int = 1) -> None:
        """One line."""
        self._say(opening(target, self._specs, devices))

    def started(self, standing: Standing) -> None:
        """One line."""
        self._standings[standing.spec] = standing
        problems, trials = counted(standing.problems, "problem"), counted(standing.trials, "trial")
        self._say(f"{standing.spec.name}: {problems}, up to {trials} of {' and '.join(standing.schedules)}")

    def tried(self, standing: Standing) -> None:
        """No line: there are thousands of trials."""
        self._standings[standing.spec] = standing

    @contextmanager
    def during(self, spec: AttentionSpec, phase: Phase) -> Iterator[None]:
        """One line each for what follows the search."""
        if phase is Phase.COMPARING:
            standing = self._standings[spec]
            words = (f"{standing.finished}/{standing.trials} trials", _gain(standing), _failed(standing.failures))
            self._say(f"{spec.name}: {'  '.join(filter(None, words))}; comparing the best")
        elif phase is Phase.CHECKING and spec not in self._checked:
            self._checked.add(spec)
            self._say(f"{spec.name}: {phase}")
        yield

    def finished(self, result: SpecResult) -> None:
        """One line."""
        self._done += 1
        self._say(f"[{self._done}/{self._specs}] {result.spec.name}: {outcome_of(result)}")

    def close(self) -> None:
        """Nothing to clear away."""

    def _say(self, line: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:6.0f} s  {line}", markup=False, highlight=False)


@dataclass
class _Row:
    """A spec that is worked on."""

    standing: Standing
    phase: Phase = Phase.COMPILING
    """What is shown; it stays when nothing is done for a moment."""
    phases: list[Phase] = field(default_factory=list)
    """What is done now."""

    def change(self) -> None:
        """Show the last of what is done now."""
        self.phase = max(self.phases, key=list(Phase).index, default=self.phase)


class LiveProgress:
    """A row for each spec that is worked on, and one for all: how many are done, the time, and what failed."""

    def __init__(self, console: Console, specs: int, budget_s: float | None) -> None:
        self._specs = specs
        self._budget_s = budget_s
        self._since = time.monotonic()
        self._has_begun = False
        self._done = 0
        self._rows: dict[AttentionSpec, _Row] = {}
        self._failures: Counter[str] = Counter()
        self._console = console
        # It draws itself four times a second, from a thread of its own: a clock that stands still looks like a hang.
        self._live = Live(console=console, get_renderable=self._table, transient=True)

    def starting(self) -> None:
        """The display appears."""
        self._live.start()

    def began(self, target: Target, devices: int = 1) -> None:
        """A line that stays; the budget's time runs from here."""
        self._since = time.monotonic()
        self._has_begun = True
        self._keep(opening(target, self._specs, devices))

    def started(self, standing: Standing) -> None:
        """A row of its own."""
        self._rows[standing.spec] = _Row(standing)

    def tried(self, standing: Standing) -> None:
        """Moves the bar on."""
        self._rows[standing.spec].standing = standing

    @contextmanager
    def during(self, spec: AttentionSpec, phase: Phase) -> Iterator[None]:
        """The word beside the bar."""
        row = self._rows[spec]
        row.phases.append(phase)
        row.change()
        try:
            yield
        finally:
            row.phases.remove(phase)
            row.change()

    def finished(self, result: SpecResult) -> None:
        """The row makes way for a line that stays."""
        self._rows.pop(result.spec, None)
        self._failures.update(str(failure.kind) for failure in result.failures.values())
        self._done += 1
        self._keep(f"{result.spec.name}: {outcome_of(result)}")

    def close(self) -> None:
        """Takes the display off the screen."""
        self._live.stop()

    def _keep(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def _table(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for _ in range(4):
            table.add_column(no_wrap=True)
        table.add_column()
        failures = self._failures.copy()
        for row in list(self._rows.values()):
            each = row.standing
            failures.update(each.failures)
            table.add_row(each.spec.name, *_advance(each.finished, each.trials), row.phase, _gain(each))
        elapsed = _clock(time.monotonic() - self._since)
        if self._has_begun:
            total = "" if self._budget_s is None else f" of {_clock(self._budget_s)}"
            words = (f"{elapsed}{total}", _failed(failures))
        else:
            words = ("starting workers", elapsed)
        table.add_row("specs", *_advance(self._done, self._specs), *words)
        return table


def _advance(done: int, total: int) -> tuple[RenderableType, str]:
    return ProgressBar(total, done, width=BAR_WIDTH), f"{done:>2}/{total}"


def progress_for(console: Console, specs: int, budget_s: float | None) -> TuneProgress:
    """The display that suits a console."""
    return LiveProgress(console, specs, budget_s) if console.is_terminal else PlainProgress(console, specs)

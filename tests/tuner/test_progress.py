import time
from io import StringIO

import pytest
from rich.console import Console

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, default_config
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.progress import LiveProgress, Phase, PlainProgress, Standing, counted
from attnforge.tuner.result import SpecResult
from tests.tuner.fake_device import TARGET

LONGEST = AttentionSpec(pass_=Pass.BACKWARD, head_dim=112, head_dim_v=112, causal=True)
OTHER = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
FAILURES = {"crash": 1, "accuracy": 12, "timeout": 3, "resources": 2, "compile": 1, "launch": 1, "invalid": 4}


def standing(spec: AttentionSpec, finished: int = 0, gain: float | None = None, **failures: int) -> Standing:
    return Standing(spec, 3, (Schedule.PORTABLE, Schedule.HOPPER), 32, finished, gain, failures)


class Screen:
    """What a live display shows now, at a width."""

    def __init__(self, width: int = 80, specs: int = 36, budget_s: float | None = 420.0) -> None:
        self.console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
        self.progress = LiveProgress(self.console, specs, budget_s)

    @property
    def lines(self) -> list[str]:
        with self.console.capture() as captured:
            self.console.print(self.progress._table())
        return [line.rstrip() for line in captured.get().splitlines()]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds on the clock."""
    seconds = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def words(line: str) -> list[str]:
    """Without the bar."""
    return [word for word in line.split() if not set(word) <= set("━╸╺")]


def test_a_row_says_all_of_a_spec_on_80_columns() -> None:
    screen = Screen()
    screen.progress.began(TARGET)
    screen.progress.started(standing(LONGEST))
    screen.progress.tried(standing(LONGEST, 17, 12.345, **FAILURES))
    with screen.progress.during(LONGEST, Phase.CHECKING):
        row, *_ = screen.lines
    assert words(row) == ["backward_d112_causal", "17/32", "checking", "numerics", "best", "12.35", "x", "default"]
    assert "━" * 4 in row, "the bar has vanished"


def test_failures_are_in_the_overall_row_alone_and_none_is_cut() -> None:
    screen = Screen()
    screen.progress.began(TARGET)
    for spec in (LONGEST, OTHER):
        screen.progress.started(standing(spec))
    screen.progress.tried(standing(LONGEST, 17, 1.2, **FAILURES))
    screen.progress.tried(standing(OTHER, 2, 1.1, crash=2))
    first, second, *overall = screen.lines
    assert "crash" not in first + second
    text = " ".join(" ".join(overall).split())
    for kind, count in (FAILURES | {"crash": 3}).items():
        assert f"{count} {kind}" in text
    assert all(len(line) <= 80 for line in overall)
    assert "failed: 3 crash" in text


def test_failures_of_finished_specs_stay_counted(now: list[float]) -> None:
    screen = Screen()
    screen.progress.began(TARGET)
    screen.progress.started(standing(OTHER))
    screen.progress.tried(standing(OTHER, 2, 1.1, crash=1))
    variant = Variant(OTHER, *default_config(OTHER, DType.BF16, TARGET.limits))
    screen.progress.finished(SpecResult(OTHER, (), 2, {variant: Failure(FailureKind.CRASH, "died")}))
    (overall,) = screen.lines
    assert words(overall) == ["specs", "1/36", "0:00", "of", "7:00", "failed:", "1", "crash"]


def test_the_clock_goes_on_without_events_and_the_budget_counts_from_when_the_workers_are_up(now: list[float]) -> None:
    screen = Screen()
    now[0] += 8
    assert words(screen.lines[-1]) == ["specs", "0/36", "starting", "workers", "0:08"]
    screen.progress.began(TARGET)
    now[0] += 92
    assert words(screen.lines[-1]) == ["specs", "0/36", "1:32", "of", "7:00"]


def test_without_a_budget_the_clock_says_what_has_passed(now: list[float]) -> None:
    screen = Screen(budget_s=None)
    screen.progress.began(TARGET)
    now[0] += 92
    assert words(screen.lines[-1]) == ["specs", "0/36", "1:32"]


def test_the_phase_is_the_last_of_what_is_under_way() -> None:
    screen = Screen()
    progress = screen.progress
    progress.started(standing(OTHER))
    assert "compiling" in screen.lines[0], "before anything has happened"
    with progress.during(OTHER, Phase.MEASURING):
        with progress.during(OTHER, Phase.COMPILING):
            assert "measuring" in screen.lines[0]
        assert "measuring" in screen.lines[0]
    with progress.during(OTHER, Phase.COMPILING):
        assert "compiling" in screen.lines[0], "nothing is measured any more"
    with progress.during(OTHER, Phase.COMPARING), progress.during(OTHER, Phase.CHECKING):
        assert "checking numerics" in screen.lines[0]
    assert "comparing" in screen.lines[0], "the last stays until something else is done"


def test_the_live_display_draws_itself_again_without_events() -> None:
    screen = Screen()
    screen.progress.starting()
    try:
        until = time.monotonic() + 20
        file = screen.console.file
        assert isinstance(file, StringIO)
        while not {"0:00", "0:01"} <= set(file.getvalue().split()):
            assert time.monotonic() < until, "the clock stands still"
            time.sleep(0.1)
    finally:
        screen.progress.close()


def test_lines_for_logs_say_what_is_done() -> None:
    console = Console(file=StringIO(), width=160)
    progress = PlainProgress(console, 1)
    progress.starting()
    progress.began(TARGET)
    progress.started(Standing(OTHER, 1, (Schedule.PORTABLE,), 32))
    progress.tried(standing(OTHER, 7, 1.5, crash=1, accuracy=2))
    with progress.during(OTHER, Phase.MEASURING):
        pass
    with progress.during(OTHER, Phase.COMPARING):
        for _ in range(2):
            with progress.during(OTHER, Phase.CHECKING):
                pass
    progress.finished(SpecResult(OTHER, (), 7, ended_early=True))
    assert isinstance(console.file, StringIO)
    assert [line.split(" s  ")[1] for line in console.file.getvalue().splitlines()] == [
        "starting workers",
        "tuning 1 spec on Fake (sm_90, 132 SMs)",
        "forward_d64_full: 1 problem, up to 32 trials of portable",
        "forward_d64_full: 7/32 trials  best 1.50 x default  failed: 1 crash, 2 accuracy; comparing the best",
        "forward_d64_full: checking numerics",
        "[1/1] forward_d64_full:  (7 trials, 0 failed, out of time)",
    ]


def test_counted() -> None:
    assert [counted(number, "spec") for number in (0, 1, 2)] == ["0 specs", "1 spec", "2 specs"]
    assert counted(2, "search", "searches") == "2 searches"

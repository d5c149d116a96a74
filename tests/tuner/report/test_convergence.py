import re

import pytest

from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.report.convergence import BOTTOM, HEIGHT, convergence_chart, shown_ms

FAILED = Failure(FailureKind.CRASH, "it died")


def ran(milliseconds: float) -> Measurement:
    return Measurement({"forward": milliseconds}, runs=7)


def test_the_line_falls_when_a_trial_is_better_and_only_then() -> None:
    chart = convergence_chart([FAILED, ran(2.0), ran(3.0), ran(1.0), FAILED, ran(1.5)], default_ms=2.0)
    heights = [float(found) for found in re.findall(r"V([\d.]+)", chart.best_so_far)]
    assert len(heights) == 2
    assert heights[0] < heights[1], "an SVG's y grows downwards"
    assert (chart.measured.count("M"), chart.failed.count("M")) == (4, 2)
    assert chart.default_at is not None
    assert abs(chart.default_at - heights[0]) < 0.06
    assert chart.winner_at is not None
    assert abs(chart.winner_at[1] - heights[1]) < 0.06
    assert chart.summary == (
        "Best 1.00 ms, found by trial 4; the default config takes 2.00 ms; 6 trials, 2 of them failed"
    )


def test_what_is_far_too_slow_is_marked_above_the_scale() -> None:
    chart = convergence_chart([ran(1.0), ran(3.9), ran(4.2), ran(1e6)], default_ms=None)
    heights = [float(found) for found in re.findall(r"M[\d.]+ ([\d.]+)h0", chart.measured)]
    marks = [float(found) for found in re.findall(r"M[\d.]+ ([\d.]+)h6", chart.too_slow)]
    assert (len(heights), len(marks)) == (2, 2)
    assert max(marks) < min(heights)
    assert all(0 <= height <= HEIGHT - BOTTOM for height in (*marks, *heights))
    assert chart.default_at is None


def test_a_slow_default_stretches_the_scale() -> None:
    chart = convergence_chart([ran(9.0), ran(1.0), ran(8.0)], default_ms=9.0)
    assert (chart.measured.count("M"), chart.too_slow) == (3, "")


def test_a_default_that_is_best_is_called_so() -> None:
    assert convergence_chart([ran(2.0), ran(3.0)], default_ms=2.0).summary == (
        "Best 2.00 ms, the default config; 2 trials, none of them failed"
    )


@pytest.mark.parametrize(
    ("fastest", "slowest", "ticks"),
    [
        (1.0, 4.0, "1 2"),
        (0.022, 0.084, "0.04 0.06 0.08"),
        (0.4, 1.6, "0.5 1"),
        (1.03, 1.3, "1 1.1 1.2 1.3"),
        (11.9, 13.0, "11.5 12 12.5 13"),
        (3.0, 400.0, "10 100"),
    ],
)
def test_ticks_are_round_numbers(fastest: float, slowest: float, ticks: str) -> None:
    chart = convergence_chart([ran(slowest), ran(fastest)], default_ms=slowest)
    assert " ".join(tick.label for tick in chart.time_ticks) == ticks


def test_one_trial_equal_trials_and_failures_alone_make_charts_too() -> None:
    assert convergence_chart([ran(1.0)], default_ms=1.0).winner_at is not None
    assert convergence_chart([ran(1.0)] * 3, default_ms=1.0).time_ticks
    nothing = convergence_chart([FAILED], default_ms=None)
    assert (nothing.winner_at, nothing.time_ticks, nothing.best_so_far) == (None, (), "")
    assert nothing.summary == "1 trial, 1 of them failed; nothing ran"


def test_milliseconds_have_three_digits() -> None:
    assert [shown_ms(value) for value in (0.01234, 0.25, 1.0, 12.345, 1234.5)] == [
        "0.0123",
        "0.250",
        "1.00",
        "12.3",
        "1234",
    ]

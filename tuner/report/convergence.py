"""How a search came to its best config: the time of the best one so far, trial by trial, as the paths of a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log10

from attnforge.tuner.measurement import Measurement
from attnforge.tuner.trial import Outcome
from attnforge.wording import counted

WIDTH, HEIGHT = 340.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 22.0, 28.0
FAILED_ROW, SLOW_ROW = 12.0, 14.0
"""Heights of the rows below and above the scale of times."""
SLOWEST_SHOWN = 4.0
"""Times the best: what is slower, and slower than the default, is only marked above the scale, or the differences that
matter would be flat."""
MOST_TICKS = 5
ROUND = (1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Tick:
    """A number on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class ConvergenceChart:
    """Trials from left to right, milliseconds upwards (logarithmic); paths are in the SVG's units."""

    best_so_far: str
    measured: str
    """A dot for each trial that ran."""
    too_slow: str
    """A triangle, above the scale, for each that took longer than the scale goes."""
    failed: str
    """A cross for each that did not run, at the lower edge."""
    default_at: float | None
    """Height of the default config's time; None when it did not run."""
    winner_at: tuple[float, float] | None
    trial_ticks: tuple[Tick, ...]
    time_ticks: tuple[Tick, ...]
    summary: str
    """The same in words, for those who do not see it."""


def convergence_chart(outcomes: Sequence[Outcome], default_ms: float | None) -> ConvergenceChart:
    """The chart of a study's outcomes, at least one, in the order in which they finished."""
    times = [outcome.total_ms if isinstance(outcome, Measurement) else None for outcome in outcomes]
    ran = [(place, time) for place, time in enumerate(times) if time is not None]
    axes = _Axes(len(times), [time for _, time in ran], default_ms)
    best = min((time for _, time in ran), default=None)
    return ConvergenceChart(
        best_so_far=_steps(axes, times),
        measured="".join(f"M{axes.x(at):.1f} {axes.y(time):.1f}h0" for at, time in ran if not axes.is_beyond(time)),
        too_slow="".join(_triangle(axes.x(at)) for at, time in ran if axes.is_beyond(time)),
        failed="".join(_cross(axes.x(at)) for at, time in enumerate(times) if time is None),
        default_at=None if default_ms is None else axes.y(default_ms),
        winner_at=None if best is None else (axes.x(times.index(best)), axes.y(best)),
        trial_ticks=axes.trial_ticks(),
        time_ticks=axes.time_ticks() if ran else (),
        summary=_summary(times, best, default_ms),
    )


class _Axes:
    def __init__(self, trials: int, ran: Sequence[float], default_ms: float | None) -> None:
        self._trials = trials
        best = min(ran, default=1.0)
        slowest = max(min(max(ran, default=1.0), best * SLOWEST_SHOWN), default_ms or 0.0, best * 1.1)
        self._low, self._high = best / 1.05, slowest * 1.02

    def x(self, place: int) -> float:
        inner = WIDTH - LEFT - RIGHT
        return LEFT + inner * (0.5 if self._trials == 1 else place / (self._trials - 1))

    def y(self, milliseconds: float) -> float:
        """Of what is beyond the scale: the row above it."""
        if self.is_beyond(milliseconds):
            return TOP
        part = log(milliseconds / self._low) / log(self._high / self._low)
        upper, lower = TOP + SLOW_ROW, HEIGHT - BOTTOM - FAILED_ROW
        return lower - (lower - upper) * part

    def is_beyond(self, milliseconds: float) -> bool:
        return milliseconds > self._high

    def trial_ticks(self) -> tuple[Tick, ...]:
        places = sorted({0, (self._trials - 1) // 2, self._trials - 1})
        return tuple(Tick(self.x(place), str(place + 1)) for place in places)

    def time_ticks(self) -> tuple[Tick, ...]:
        return tuple(Tick(self.y(value), f"{value:.10g}") for value in _round_numbers(self._low, self._high))


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 and so on; the powers of ten alone in a wide range, multiples of one of them in a narrow one."""
    powers = range(floor(log10(low)) - 3, floor(log10(high)) + 1)
    steps = [digit * 10.0**power for power in powers for digit in ROUND]
    found = [step for step in steps if low <= step <= high]
    if len(found) > MOST_TICKS:
        return [step for step in found if log10(step).is_integer()]
    if len(found) > 1:
        return found
    even = ([i * step for i in range(ceil(low / step), floor(high / step) + 1)] for step in reversed(steps))
    return next((of_step for of_step in even if len(of_step) > 2), found)


def shown_ms(milliseconds: float) -> str:
    """Three significant digits."""
    decimals = 2 - floor(log10(milliseconds))
    return f"{milliseconds:.{max(decimals, 0)}f}"


def _cross(x: float) -> str:
    y, arm = HEIGHT - BOTTOM - 3.0, 2.5
    return f"M{x - arm:.1f} {y - arm:.1f}l{2 * arm} {2 * arm}m0 -{2 * arm}l-{2 * arm} {2 * arm}"


def _triangle(x: float) -> str:
    """Pointing up."""
    return f"M{x - 3.0:.1f} {TOP + 2.5}h6l-3 -5z"


def _steps(axes: _Axes, times: Sequence[float | None]) -> str:
    path, best = "", None
    for place, time in enumerate(times):
        if time is not None and best is None:
            path = f"M{axes.x(place):.1f} {axes.y(time):.1f}"
        if best is not None:
            path += f"H{axes.x(place):.1f}"
        if time is not None and (best is None or time < best):
            best = time
            path += f"V{axes.y(time):.1f}"
    return path


def _summary(times: Sequence[float | None], best: float | None, default_ms: float | None) -> str:
    failed = sum(time is None for time in times)
    counts = f"{counted(len(times), 'trial')}, {failed or 'none'} of them failed"
    if best is None:
        return f"{counts}; nothing ran"
    if best == default_ms:
        return f"Best {shown_ms(best)} ms, the default config; {counts}"
    found = f"Best {shown_ms(best)} ms, found by trial {times.index(best) + 1}"
    compared = "" if default_ms is None else f"; the default config takes {shown_ms(default_ms)} ms"
    return f"{found}{compared}; {counts}"

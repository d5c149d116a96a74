"""Whether a comparison of configs can be trusted: what the GPU was like meanwhile, and how far its times scattered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnforge.cache.schema import Conditions, GpuState, Throttle
from attnforge.tuner.comparison import Rounds, compare

SLOW_CLOCKS = 0.75
"""Share of the highest SM clock seen. A GPU that starts on a heavy kernel gives up boost clocks: an H200 fell from 1980
to 1815-1860 MHz within milliseconds in 17 of 108 comparisons, all of them of long kernels. Such drift cancels in paired
times, as power capping does; below three quarters something else slows the GPU down, and kernels that wait for memory
gain on those that compute."""
NOISY_THROTTLES = frozenset({Throttle.THERMAL, Throttle.POWER_BRAKE, Throttle.HARDWARE})
"""Not the board's power cap: large attention runs against it on a healthy GPU."""
UNDECIDED = 0.05
"""Of the ratio, to either side: with a wider interval a gain of 5 % is missed more often than not."""


def noise(conditions: Sequence[Conditions], workers: Sequence[Rounds] = ()) -> tuple[str, ...]:
    """What makes a comparison useless, in words; empty when nothing does, or nothing could tell.

    Args:
        conditions: around it, by worker.
        workers: each worker's milliseconds, by config and round; the config in office comes first.
    """
    states = [state for each in conditions for state in (each.before, each.after)]
    return (*_throttling(states), *_crowd(states), *_slow_clocks(states), *_scatter(workers))


def _throttling(states: Sequence[GpuState]) -> Iterable[str]:
    found = {throttle for state in states for throttle in state.throttled or ()}
    return (f"{throttle} throttling" for throttle in Throttle if throttle in found & NOISY_THROTTLES)


def _crowd(states: Sequence[GpuState]) -> Iterable[str]:
    if any(state.other_processes for state in states):
        yield "another process on the GPU"


def _slow_clocks(states: Sequence[GpuState]) -> Iterable[str]:
    clocks = [state.sm_mhz for state in states if state.sm_mhz is not None]
    if clocks and min(clocks) < SLOW_CLOCKS * max(clocks):
        yield f"clocks between {min(clocks)} and {max(clocks)} MHz"


def _scatter(workers: Sequence[Rounds]) -> Iterable[str]:
    """When there is a config that may be faster, or slower, by more than UNDECIDED."""
    by_config = list(zip(*workers, strict=True))
    for challenger in by_config[1:]:
        found = compare(challenger, by_config[0])
        if found.low < 1 - UNDECIDED and found.high > 1 + UNDECIDED:
            yield "times too scattered to tell 5 %"
            return

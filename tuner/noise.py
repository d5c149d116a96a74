"""Whether a GPU was disturbed while configs were compared on it."""

from __future__ import annotations

from collections.abc import Iterable

from attnforge.cache.schema import Conditions, Throttle

CLOCKS_MOVED = 0.05
"""Share of the SM clock that may come or go during one worker's comparison. Boost clocks lose one to three per cent as
a GPU warms up, which cancels in paired times; more is throttling or somebody else's work."""
NOISY_THROTTLES = frozenset({Throttle.THERMAL, Throttle.POWER_BRAKE, Throttle.HARDWARE})
"""Not the board's power cap: large attention runs against it on a healthy GPU. Where it bites, CLOCKS_MOVED tells."""


def noise(conditions: Iterable[Conditions]) -> tuple[str, ...]:
    """What disturbed the comparisons, in words; empty when nothing did, or nothing could tell."""
    found: dict[str, None] = {}
    for each in conditions:
        found.update(dict.fromkeys(_noise(each)))
    return tuple(found)


def _noise(conditions: Conditions) -> Iterable[str]:
    states = conditions.before, conditions.after
    for throttle in Throttle:
        if throttle in NOISY_THROTTLES and any(throttle in (state.throttled or ()) for state in states):
            yield f"{throttle} throttling"
    if any(state.other_processes for state in states):
        yield "another process on the GPU"
    clocks = [state.sm_mhz for state in states if state.sm_mhz is not None]
    if len(clocks) == len(states) and max(clocks) - min(clocks) > CLOCKS_MOVED * max(clocks):
        yield f"clocks moved from {clocks[0]} to {clocks[1]} MHz"

"""What the entries were found on: the target, the versions, the dates, and what the GPU was like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from attnforge import __version__
from attnforge.cache.schema import GpuState, Source, Throttle, Toolchain, TunedEntry
from attnforge.codegen.schedules import DEFINITIONS
from attnforge.tuner.report.sources import ReportSources

Facts = list[tuple[str, str]]
"""Label and value."""


def environment_of(sources: ReportSources) -> Facts:
    """All that is known."""
    return [*_target(sources), *_versions(sources), *_all_dates(sources), *_gpu(sources.entries)]


def _target(sources: ReportSources) -> Facts:
    target = sources.target
    if target is None:
        return [("target", sources.slug)]
    return [
        ("target", sources.slug),
        ("GPU", target.name or "an arch alone: nothing was measured"),
        ("arch", f"{target.arch}, {target.sm_count} SMs, {target.shared_memory // 1024} KiB of shared memory a block"),
    ]


def _versions(sources: ReportSources) -> Facts:
    toolchains = [entry.toolchain for entry in sources.entries]
    versions = {
        "triton": [t.triton for t in toolchains] or [study.triton for study in sources.studies],
        "torch": [t.torch for t in toolchains],
        "templates": [t.templates for t in toolchains]
        or [digest for study in sources.studies for digest in study.templates.values()],
    }
    here = [Toolchain.installed(schedule, pass_) for schedule, pass_ in DEFINITIONS]
    facts = [
        (name, _version(values, {getattr(installed, name) for installed in here})) for name, values in versions.items()
    ]
    return [*facts, ("attnforge", f"{__version__}, which made this page")]


def _version(values: Sequence[str], installed: set[str]) -> str:
    """The versions in use, the most frequent first, and whether those here are others."""
    here = f"{next(iter(installed))} is installed here" if len(installed) == 1 else "others are installed here"
    if not values:
        return f"not recorded ({here})"
    listed = ", ".join(version for version, _ in Counter(values).most_common())
    return listed if set(values) <= installed else f"{listed} ({here})"


def _all_dates(sources: ReportSources) -> Facts:
    return [
        *_dates("entries written", [entry.created for entry in sources.entries]),
        *_dates("trials run", [date for study in sources.studies for date in (study.began, study.ended)]),
    ]


def _dates(label: str, dates: Sequence[datetime]) -> Facts:
    if not dates:
        return []
    first, last = (f"{date:%Y-%m-%d %H:%M} UTC" for date in (min(dates), max(dates)))
    return [(label, first if first == last else f"{first} to {last}")]


def _gpu(entries: Sequence[TunedEntry]) -> Facts:
    """What the GPU was like around the comparisons of measured entries."""
    measured = [entry for entry in entries if entry.source is Source.MEASURED]
    if not measured:
        return []
    states = [_states(entry) for entry in measured if entry.conditions]
    if not states:
        return [("GPU while comparing", "not recorded")]
    facts = (
        [] if len(states) == len(measured) else [("GPU while comparing", f"recorded for {_of(len(states), measured)}")]
    )
    every = [state for of_entry in states for state in of_entry]
    return [
        *facts,
        ("SM clock", _range([state.sm_mhz for state in every], "MHz")),
        ("temperature", _range([state.temperature_c for state in every], "°C")),
        ("power", _range([state.power_w for state in every], "W")),
        ("throttled by", _throttles(states)),
        ("other processes", _other_processes(states)),
    ]


def _states(entry: TunedEntry) -> list[GpuState]:
    return [state for each in entry.conditions or () for state in (each.before, each.after)]


def _range(values: Sequence[float | None], unit: str) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "not recorded"
    least, most = f"{min(numbers):.0f}", f"{max(numbers):.0f}"
    return f"{least} {unit}" if least == most else f"{least} to {most} {unit}"


def _throttles(entries: Sequence[Sequence[GpuState]]) -> str:
    if all(state.throttled is None for states in entries for state in states):
        return "not recorded"
    counts = Counter(
        throttle for states in entries for throttle in {each for state in states for each in state.throttled or ()}
    )
    return ", ".join(f"{each} ({_of(counts[each], entries)})" for each in Throttle if counts[each]) or "nothing"


def _other_processes(entries: Sequence[Sequence[GpuState]]) -> str:
    if all(state.other_processes is None for states in entries for state in states):
        return "not recorded"
    count = sum(any(state.other_processes for state in states) for states in entries)
    return f"seen ({_of(count, entries)})" if count else "none seen"


def _of(count: int, entries: Sequence[object]) -> str:
    return f"{count} of {len(entries)} comparisons"

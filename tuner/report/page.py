"""The page: what the sources say, as plain values, put into the HTML template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from itertools import groupby
from math import exp, log

import jinja2

from attnforge import __version__
from attnforge.cache.schema import Source, Toolchain, TunedEntry
from attnforge.codegen import Variant, default_config
from attnforge.codegen.schedules import DEFINITIONS
from attnforge.problem import Bucket, Problem
from attnforge.target import Target
from attnforge.tuner.report import convergence
from attnforge.tuner.report.convergence import ConvergenceChart, convergence_chart, shown_ms
from attnforge.tuner.report.failures import failures_by_kind
from attnforge.tuner.report.importance import MIN_MEASURED, importances
from attnforge.tuner.report.recorded_studies import RecordedStudy
from attnforge.tuner.report.sources import ReportSources


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A row of the summary: an entry of the tuned cache."""

    entry: TunedEntry
    bar: float
    """Length of the gain's bar, percent of the longest."""
    one: float
    """Where a gain of 1 is on it, percent."""


@dataclass(frozen=True, slots=True)
class StudyPart:
    """A study's part of the convergence section."""

    title: str
    chart: ConvergenceChart
    winner: str
    """Schedule and name of the fastest config; empty when nothing ran."""


def render_page(sources: ReportSources, created: datetime) -> str:
    """The report as one HTML document that refers to nothing outside itself; ``created`` has a timezone."""
    folder = files("attnforge.tuner.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"ms": shown_ms, "problem": problem_text, "bucket": bucket_text, "count": _count}
    template = environment.from_string(folder.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    style = folder.joinpath("style.css").read_text(encoding="utf-8")
    return template.render(style=style, created=created, axes=convergence, least=MIN_MEASURED, **_content(sources))


def problem_text(problem: Problem) -> str:
    """Such as ``seqlen 4096, batch 4 x 16 heads, bfloat16``."""
    lengths = str(problem.seqlen_q)
    if problem.seqlen_k != problem.seqlen_q:
        lengths += f" (keys {problem.seqlen_k})"
    heads = f"{problem.heads} heads" + (
        f" ({problem.kv_heads} of k and v)" if problem.kv_heads != problem.heads else ""
    )
    return f"seqlen {lengths}, batch {problem.batch} × {heads}, {problem.dtype}"


def bucket_text(bucket: Bucket) -> str:
    """Such as ``seqlen ≤ 4096, batch × heads ≤ 64, bfloat16``."""
    keys = "" if bucket.seqlen_k == bucket.seqlen_q else f" (keys ≤ {bucket.seqlen_k})"
    return f"seqlen ≤ {bucket.seqlen_q}{keys}, batch × heads ≤ {bucket.batch_heads}, {bucket.dtype}"


def _content(sources: ReportSources) -> dict[str, object]:
    by_spec = [(spec, list(studies)) for spec, studies in groupby(sources.studies, lambda study: study.spec)]
    failures = failures_by_kind(sources.studies)
    return {
        "slug": sources.slug,
        "name": (sources.target.name if sources.target else None) or sources.slug,
        "notices": sources.notices,
        "headline": _headline(sources),
        "rows": [(spec.name, list(rows)) for spec, rows in groupby(_rows(sources.entries), lambda row: row.entry.spec)],
        "several_toolchains": _has_several_toolchains(sources.entries),
        "specs": [(spec.name, [_part(study, sources) for study in studies]) for spec, studies in by_spec],
        "importances": importances(sources.studies),
        "failures": failures,
        "most_failures": max((each.count for each in failures), default=1),
        "trials": sum(len(study.outcomes) for study in sources.studies),
        "failed": sum(each.count for each in failures),
        "environment": _environment(sources),
    }


def _headline(sources: ReportSources) -> list[tuple[str, str]]:
    """Number and what it is, for the top of the page."""
    gains = [entry.gain for entry in sources.entries if entry.gain is not None]
    found = []
    if gains:
        measured = [entry for entry in sources.entries if entry.source is Source.MEASURED]
        word = "gain" if measured else "predicted gain"
        found.append((f"{exp(sum(map(log, gains)) / len(gains)):.2f}×", f"mean {word} over the default configs"))
        found.append((f"{max(gains):.2f}×", f"largest {word}"))
        found.append((f"{sum(gain > 1.0 for gain in gains)} of {len(gains)}", "tuned configs beat the default"))
    else:
        found.append((str(len(sources.entries)), "tuned configs"))
    if sources.studies:
        trials = sum(len(study.outcomes) for study in sources.studies)
        found.append((f"{trials}", f"trials in {_count(len(sources.studies), 'study', 'studies')}"))
    return found


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _rows(entries: Sequence[TunedEntry]) -> list[EntryRow]:
    longest = max((entry.gain or 0.0 for entry in entries), default=1.0)
    longest = max(longest, 1.0)
    return [EntryRow(entry, 100 * (entry.gain or 0.0) / longest, 100 / longest) for entry in entries]


def _part(study: RecordedStudy, sources: ReportSources) -> StudyPart:
    measurements = study.measurements
    variant = _default(study, sources.target)
    default = None if variant is None else measurements.get(variant)
    title = problem_text(study.problem)
    if len({each.triton for each in sources.studies}) > 1:
        title += f"; triton {study.triton}"
    winner = min(measurements, key=lambda variant: measurements[variant].total_ms, default=None)
    chart = convergence_chart(tuple(study.outcomes.values()), None if default is None else default.total_ms)
    return StudyPart(title, chart, "" if winner is None else f"{winner.schedule}/{winner.config.name}")


def _default(study: RecordedStudy, target: Target | None) -> Variant | None:
    if target is None:
        return None
    return Variant(study.spec, *default_config(study.spec, study.problem.dtype, target.limits))


def _has_several_toolchains(entries: Iterable[TunedEntry]) -> bool:
    """Whether some schedule's entries of one pass were found with different ones."""
    kinds = {(entry.schedule, entry.spec.pass_, entry.toolchain) for entry in entries}
    return len(kinds) > len({(schedule, pass_) for schedule, pass_, _ in kinds})


def _environment(sources: ReportSources) -> list[tuple[str, str]]:
    """Label and value, of the target, the versions and the dates."""
    target = sources.target
    facts = [("target", sources.slug)]
    if target is not None:
        facts += [
            ("GPU", target.name or "an arch alone: nothing was measured"),
            (
                "arch",
                f"{target.arch}, {target.sm_count} SMs, {target.shared_memory // 1024} KiB of shared memory a block",
            ),
        ]
    toolchains = [entry.toolchain for entry in sources.entries]
    versions = {
        "triton": [t.triton for t in toolchains] or [study.triton for study in sources.studies],
        "torch": [t.torch for t in toolchains],
        "templates": [t.templates for t in toolchains]
        or [digest for study in sources.studies for digest in study.templates.values()],
    }
    here = [Toolchain.installed(schedule, pass_) for schedule, pass_ in DEFINITIONS]
    for name, values in versions.items():
        facts.append((name, _version(values, {getattr(installed, name) for installed in here})))
    facts.append(("attnforge", f"{__version__}, which made this page"))
    facts += _dates("entries written", [entry.created for entry in sources.entries])
    facts += _dates("trials run", [date for study in sources.studies for date in (study.began, study.ended)])
    return facts + _device_facts(sources.entries)


def _version(values: Sequence[str], installed: set[str]) -> str:
    """The versions in use, the most frequent first, and whether those here are others."""
    here = f"{next(iter(installed))} is installed here" if len(installed) == 1 else "others are installed here"
    if not values:
        return f"not recorded ({here})"
    listed = ", ".join(version for version, _ in Counter(values).most_common())
    return listed if set(values) <= installed else f"{listed} ({here})"


def _dates(label: str, dates: Sequence[datetime]) -> list[tuple[str, str]]:
    if not dates:
        return []
    first, last = (f"{date:%Y-%m-%d %H:%M} UTC" for date in (min(dates), max(dates)))
    return [(label, first if first == last else f"{first} to {last}")]


def _device_facts(entries: Iterable[TunedEntry]) -> list[tuple[str, str]]:
    """What the sessions recorded of the device: each fact once, numbers as their range."""
    found: dict[str, list[bool | int | float | str]] = {}
    for entry in entries:
        for name, value in entry.device.items():
            found.setdefault(name, []).append(value)
    return [(name.replace("_", " "), _range(values)) for name, values in found.items()]


def _range(values: Sequence[bool | int | float | str]) -> str:
    distinct = list(dict.fromkeys(values))
    numbers = [value for value in distinct if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(distinct) > 1:
        return f"{min(numbers):g} to {max(numbers):g}"
    return ", ".join(map(str, distinct))

"""The page: what the sources say, as plain values, put into the HTML template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from itertools import groupby
from math import exp, log

import jinja2

from attnforge.cache.schema import Source, TunedEntry
from attnforge.codegen import Variant, default_config
from attnforge.problem import Bucket, Problem
from attnforge.target import Target
from attnforge.tuner.report import convergence
from attnforge.tuner.report.convergence import ConvergenceChart, convergence_chart, shown_ms
from attnforge.tuner.report.environment import environment_of
from attnforge.tuner.report.failures import failures_by_kind
from attnforge.tuner.report.importance import MIN_MEASURED, importances
from attnforge.tuner.report.recorded_studies import RecordedStudy
from attnforge.tuner.report.sources import ReportSources
from attnforge.tuner.report.trials import Trial, trials_of


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
    """Such as ``seqlen 2049–4096, batch × heads 33–64, bfloat16``."""
    keys = "" if bucket.seqlen_k == bucket.seqlen_q else f" (keys {_range_to(bucket.seqlen_k)})"
    return f"seqlen {_range_to(bucket.seqlen_q)}{keys}, batch × heads {_range_to(bucket.batch_heads)}, {bucket.dtype}"


def _range_to(edge: int) -> str:
    """The sizes that round up to a power of two."""
    least = edge // 2 + 1
    return str(edge) if least >= edge else f"{least}–{edge}"


def _content(sources: ReportSources) -> dict[str, object]:
    by_spec = groupby(sources.studies, lambda study: study.spec)
    rows, trials, told = _rows(sources.entries), trials_of(sources.studies), importances(sources.studies)
    failures = failures_by_kind(trials)
    return {
        "slug": sources.slug,
        "name": (sources.target.name if sources.target else None) or sources.slug,
        "notices": sources.notices,
        "headline": _headline(rows, trials),
        "rows": [(spec.name, list(of_spec)) for spec, of_spec in groupby(rows, lambda row: row.entry.spec)],
        "entries": len(rows),
        "noisy": sum(bool(row.entry.noise) for row in rows),
        "several_toolchains": _has_several_toolchains(sources.entries),
        "specs": [(spec.name, [_part(study, sources) for study in studies]) for spec, studies in by_spec],
        "importances": told,
        "failures": failures,
        "most_failures": max((each.count for each in failures), default=1),
        "trials": len(trials),
        "failed": sum(each.count for each in failures),
        "environment": environment_of(sources),
    }


def _headline(rows: Sequence[EntryRow], trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """Number and what it is, for the top of the page."""
    gains = [row.entry.gain for row in rows if row.entry.gain is not None]
    found = []
    if gains:
        measured = any(row.entry.source is Source.MEASURED for row in rows)
        word = "gain" if measured else "predicted gain"
        found.append((f"{exp(sum(map(log, gains)) / len(gains)):.2f}×", f"mean {word} over the default configs"))
        found.append((f"{max(gains):.2f}×", f"largest {word}"))
        found.append((f"{sum(gain > 1.0 for gain in gains)} of {len(gains)}", "tuned configs beat the default"))
    else:
        found.append((str(len(rows)), "tuned configs"))
    noisy = sum(bool(row.entry.noise) for row in rows)
    if noisy:
        found.append((f"{noisy} of {len(rows)}", "comparisons were noisy"))
    if trials:
        specs = len({trial.variant.spec for trial in trials})
        found.append((f"{len(trials)}", f"trials of {_count(specs, 'spec', 'specs')}"))
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

"""Which fields of a config decide how fast it is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import floor, log
from statistics import fmean

from attnforge.codegen import AttentionSpec, Config, Pass, Schedule, fields_of
from attnforge.codegen.schedules.base import Choice
from attnforge.tuner.report.recorded_studies import RecordedStudy

MIN_MEASURED = 10
"""Configs; each counts once, on however many problems it was measured: on longer sequences the same ones win, so that
another problem is hardly another observation. Of 216 draws of 10 configs from the H200's sweeps a field stands out in
23 %, and in 84 % of these it decides in the whole sweep, too; of 12 it is 34 % and 91 %, but of 6 only 5 %, as often as
chance has it, and 55 % (tests/tuner/report/test_importance_on_sweeps.py)."""
CHANCE = 0.05
"""How often, of configs that are all alike, some field explains so much."""
SHUFFLES = 200
SMALLEST = 0.005
"""Share that is one: less is shown as 0.00."""
EQUAL = 0.001
"""Standard deviation of log times below which configs are equally fast: a tenth of what medians are right to."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a field explains alone."""

    field: str
    share: float
    """Of the variance of log times, less what chance alone would: from SMALLEST to 1."""
    stands_out: bool
    """Whether chance seldom gives so much: see CHANCE."""


@dataclass(frozen=True, slots=True)
class Importance:
    """What the fields of a schedule's configs explain of the times, the most important first."""

    name: str
    """Of the spec; or the pass, when its specs are taken together."""
    schedule: Schedule
    specs: int
    configs: int
    """That were measured, each spec's on their own."""
    shares: tuple[Share, ...]
    """They need not add up to one: fields act together, and a search tries them together."""
    without: tuple[str, ...]
    """Fields that had several values and explain nothing."""


@dataclass(frozen=True, slots=True)
class TooFew:
    """A spec of whose configs too few were measured to tell the fields apart, by schedule."""

    spec: AttentionSpec
    configs: Mapping[Schedule, int]


@dataclass(frozen=True, slots=True)
class Importances:
    """All that can be told."""

    found: tuple[Importance, ...]
    too_few: tuple[TooFew, ...]


_LogTimes = Mapping[Config, float]
"""Of a spec's configs: log of the time over the mean one, itself the mean over the problems."""


def importances(studies: Sequence[RecordedStudy]) -> Importances:
    """By pass and schedule what all its specs say together, and what each spec of which enough was measured says.

    A search stops early, with a few configs of each spec: together they still tell. ``studies`` are sorted by spec.
    """
    by_schedule: dict[tuple[Pass, Schedule], dict[AttentionSpec, _LogTimes]] = {}
    too_few = []
    for spec, of_spec in groupby(studies, lambda study: study.spec):
        times = _log_times(list(of_spec))
        for schedule, found in times.items():
            by_schedule.setdefault((spec.pass_, schedule), {})[spec] = found
        few = {schedule: len(found) for schedule, found in times.items() if len(found) < MIN_MEASURED}
        too_few += [TooFew(spec, few)] if few else []
    told = []
    for (pass_, schedule), specs in sorted(by_schedule.items(), key=lambda pair: list(Pass).index(pair[0][0])):
        together = [(str(pass_), list(specs.values()))] if len(specs) > 1 else []
        for name, parts in (*together, *((spec.name, [found]) for spec, found in specs.items())):
            if sum(map(len, parts)) >= MIN_MEASURED:
                told.append(_importance(name, schedule, parts))
    return Importances(tuple(told), tuple(too_few))


def _log_times(studies: Iterable[RecordedStudy]) -> dict[Schedule, _LogTimes]:
    """A spec's.

    Over the mean of a problem, not its best: that is a single config's, and depends on how far the search came.
    """
    found: dict[Schedule, dict[Config, list[float]]] = {}
    for study in studies:
        by_schedule: dict[Schedule, dict[Config, float]] = {}
        for variant, measurement in study.measurements.items():
            by_schedule.setdefault(variant.schedule, {})[variant.config] = log(measurement.total_ms)
        for schedule, times in by_schedule.items():
            mean = fmean(times.values())
            for config, time in times.items():
                found.setdefault(schedule, {}).setdefault(config, []).append(time - mean)
    return {schedule: {config: fmean(of) for config, of in each.items()} for schedule, each in found.items()}


def _importance(name: str, schedule: Schedule, specs: Sequence[_LogTimes]) -> Importance:
    values = _values([config for times in specs for config in times])
    times = [list(of_spec.values()) for of_spec in specs]
    found = {field: _explained(of, times) for field, of in values.items()}
    bound = _by_chance(values, times)
    shares = [Share(field, share, share > bound) for field, share in found.items() if share >= SMALLEST]
    ordered = sorted(shares, key=lambda each: -each.share)
    without = tuple(field for field, share in found.items() if share < SMALLEST)
    return Importance(name, schedule, len(specs), sum(map(len, times)), tuple(ordered), without)


def _values(configs: Sequence[Config]) -> dict[str, list[Choice]]:
    """By field that has several: each config's value."""
    rows = [fields_of(config) for config in configs]
    found = {field: [row[field] for row in rows] for field in rows[0]}
    return {field: of for field, of in found.items() if len(set(of)) > 1}


def _by_chance(values: Mapping[str, Sequence[Choice]], times: Sequence[Sequence[float]]) -> float:
    """What the most important field explains but seldom when each spec's times are dealt out to its configs anew."""
    dealer = random.Random(0)
    dealt = [[dealer.sample(of_spec, len(of_spec)) for of_spec in times] for _ in range(SHUFFLES)]
    most = sorted(max((_explained(of, each) for of in values.values()), default=0.0) for each in dealt)
    return most[floor((1 - CHANCE) * SHUFFLES)]


def _explained(values: Sequence[Choice], specs: Sequence[Sequence[float]]) -> float:
    """Share of the variance of log times that a field explains, less what chance alone would: epsilon squared.

    Kelley, An unbiased correlation ratio measure, PNAS 1935. Each spec's times are centred, which takes one degree of
    freedom. 0 when none is left to judge chance by.
    """
    times = [time for of_spec in specs for time in of_spec]
    groups: dict[Choice, list[float]] = {}
    for value, time in zip(values, times, strict=True):
        groups.setdefault(value, []).append(time)
    mean = sum(times) / len(times)
    total = sum((time - mean) ** 2 for time in times)
    between = sum((sum(of) - len(of) * mean) ** 2 / len(of) for of in groups.values())
    left = len(times) - len(groups) - (len(specs) - 1)
    if left < 1 or total < len(times) * EQUAL**2:
        return 0.0
    by_chance = (len(groups) - 1) * (total - between) / left
    return max(0.0, (between - by_chance) / total)

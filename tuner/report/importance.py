"""Which fields of a config decide how fast it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import create_trial

from attnforge.codegen import AttentionSpec, Variant, fields_of
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.report.recorded_studies import RecordedStudy

MIN_MEASURED = 20
"""Measured configs; of fewer the fastest quarter is less than five, and the shares are noise."""
FASTEST_PART = 0.25


@dataclass(frozen=True, slots=True)
class Importance:
    """The fields of a spec's configs, the most important first."""

    spec: AttentionSpec
    shares: tuple[tuple[str, float], ...]
    """Field and share; they add up to one."""
    studies: int
    """Over how many problems the shares are means."""


@dataclass(frozen=True, slots=True)
class NoImportance:
    """A spec whose fields cannot be told apart yet."""

    spec: AttentionSpec
    reason: str


def importance_of(spec: AttentionSpec, studies: Sequence[RecordedStudy]) -> Importance | NoImportance:
    """How well each field tells the fastest quarter of a spec's measured configs from the rest.

    Shares by PED-ANOVA (Watanabe et al., IJCAI 2023), the mean over the studies that have enough measurements.
    """
    measured = [_of_main_schedule(study.measurements) for study in studies]
    enough = [found for found in measured if len(found) >= MIN_MEASURED]
    if not enough:
        most = max(map(len, measured), default=0)
        return NoImportance(spec, f"{most} measured configs; it takes {MIN_MEASURED} on one problem")
    found = [shares for each in enough if (shares := _shares(each))]
    if not found:
        return NoImportance(spec, "no field of the measured configs has more than one value, or all are equally fast")
    fields = dict.fromkeys(field for shares in found for field in shares)
    means = {field: sum(shares.get(field, 0.0) for shares in found) / len(found) for field in fields}
    ordered = sorted(means.items(), key=lambda pair: -pair[1])
    return Importance(spec, tuple(ordered), len(found))


def _of_main_schedule(measurements: Mapping[Variant, Measurement]) -> dict[Variant, Measurement]:
    """Those of the schedule that was measured most: schedules have fields of their own."""
    schedules = [variant.schedule for variant in measurements]
    if not schedules:
        return {}
    main = max(dict.fromkeys(schedules), key=schedules.count)
    return {variant: found for variant, found in measurements.items() if variant.schedule is main}


def _shares(measurements: Mapping[Variant, Measurement]) -> dict[str, float]:
    """Empty when nothing can be told apart."""
    rows = [(fields_of(variant.config), found.total_ms) for variant, found in measurements.items()]
    seen = {field: list(dict.fromkeys(fields[field] for fields, _ in rows)) for field in rows[0][0]}
    # By the places of the values that were tried: the bounds that the studies are stored with say nothing.
    distributions: dict[str, BaseDistribution] = {
        field: CategoricalDistribution(range(len(values))) for field, values in seen.items() if len(values) > 1
    }
    if not distributions or len({milliseconds for _, milliseconds in rows}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for fields, milliseconds in rows:
        params = {field: seen[field].index(fields[field]) for field in distributions}
        study.add_trial(create_trial(value=milliseconds, params=params, distributions=distributions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=FASTEST_PART)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))

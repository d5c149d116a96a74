"""Trials as Optuna stores them: a variant, who runs it, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from attnforge.codegen import AttentionSpec, CodegenError, Config, Schedule, Variant, config_type, fields_of
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import Failure
from attnforge.tuner.measurement import Measurement

Outcome = Measurement | Failure
LARGEST_SIZE = 1 << 20
"""Above any integer tunable: Optuna wants bounds, and the same ones each time."""


Templates = Mapping[Schedule, str]
"""Digest of each schedule's templates, see Toolchain: trials that were made with others are of no use."""


def running_trial(variant: Variant, templates: Templates, **user_attrs: object) -> FrozenTrial:
    """A trial of a variant that begins now, to be stored."""
    fields, prefix = fields_of(variant.config), _prefix(variant.schedule, templates)
    return create_trial(
        state=TrialState.RUNNING,
        params={prefix + field: _plain(value) for field, value in fields.items()},
        distributions={prefix + field: _distribution(value) for field, value in fields.items()},
        user_attrs={
            "schedule": str(variant.schedule),
            "templates": templates[variant.schedule],
            **user_attrs,
        },
    )


def variant_of(trial: FrozenTrial, spec: AttentionSpec, templates: Templates) -> Variant | None:
    """What a stored trial tries; None when that no longer exists, has other templates, or is none of the tuner's."""
    try:
        schedule = Schedule(trial.user_attrs["schedule"])
        if trial.user_attrs["templates"] != templates[schedule]:
            return None
        prefix = _prefix(schedule, templates)
        fields = {name.removeprefix(prefix): value for name, value in trial.params.items()}
        config: Config = msgspec.convert(fields, config_type(schedule, spec.pass_))
        return Variant(spec, schedule, config)
    except (CodegenError, msgspec.ValidationError, KeyError, ValueError):
        return None


def outcome_of(trial: FrozenTrial) -> Outcome | None:
    """What came of a stored trial; None while it runs, when its tuner gave it up, or when it cannot be read."""
    if not trial.state.is_finished() or "outcome" not in trial.user_attrs:
        return None
    try:
        outcome: Outcome = msgspec.convert(trial.user_attrs["outcome"], Outcome)
    except msgspec.ValidationError:
        return None
    return outcome


def outcomes_of(trials: Iterable[FrozenTrial], spec: AttentionSpec, templates: Templates) -> dict[Variant, Outcome]:
    """What came of all trials that are finished and made with the templates, in their order."""
    found: dict[Variant, Outcome] = {}
    for trial in trials:
        outcome = outcome_of(trial)
        variant = None if outcome is None else variant_of(trial, spec, templates)
        if outcome is not None and variant is not None:
            found.setdefault(variant, outcome)
    return found


def last_templates(trials: Iterable[FrozenTrial]) -> dict[Schedule, str]:
    """Those of each schedule's last finished trial."""
    recorded = [trial.user_attrs for trial in trials if outcome_of(trial) is not None]
    known = [attrs for attrs in recorded if attrs["schedule"] in set(Schedule)]
    return {Schedule(attrs["schedule"]): str(attrs["templates"]) for attrs in known}


def _prefix(schedule: Schedule, templates: Templates) -> str:
    """Of a schedule's parameters. Optuna refuses one whose choices change, as a tunable's may from templates to
    templates: so these name theirs apart."""
    return f"{schedule}-{templates[schedule]}."


def _plain(value: Choice) -> Any:
    return value if isinstance(value, bool | int) else str(value)


def _distribution(value: Choice) -> BaseDistribution:
    if isinstance(value, bool):
        return CategoricalDistribution((False, True))
    if isinstance(value, int):
        return IntDistribution(0, LARGEST_SIZE)
    return CategoricalDistribution(tuple(str(member) for member in type(value)))

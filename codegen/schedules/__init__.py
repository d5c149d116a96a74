"""The schedules, by name and pass."""

from __future__ import annotations

from dataclasses import fields

from attnforge.codegen.schedules.base import Choice, Config, Limits, Schedule, ScheduleDefinition
from attnforge.codegen.schedules.hopper import BACKWARD as HOPPER_BACKWARD
from attnforge.codegen.schedules.hopper import FORWARD as HOPPER_FORWARD
from attnforge.codegen.schedules.portable import BACKWARD as PORTABLE_BACKWARD
from attnforge.codegen.schedules.portable import FORWARD as PORTABLE_FORWARD
from attnforge.codegen.spec import AttentionSpec, DType, Pass

DEFINITIONS: dict[tuple[Schedule, Pass], ScheduleDefinition] = {
    (definition.schedule, definition.pass_): definition
    for definition in (PORTABLE_FORWARD, PORTABLE_BACKWARD, HOPPER_FORWARD, HOPPER_BACKWARD)
}


def schedule_of(schedule: Schedule, pass_: Pass) -> ScheduleDefinition:
    """The definition of a schedule for a pass; KeyError when that schedule has none."""
    return DEFINITIONS[schedule, pass_]


def config_type(schedule: Schedule, pass_: Pass) -> type[Config]:
    """The dataclass that holds a schedule's tunables for a pass."""
    return schedule_of(schedule, pass_).config_type


def default_config(spec: AttentionSpec, dtype: DType, limits: Limits) -> tuple[Schedule, Config]:
    """What to run when nothing was tuned: the portable schedule, with tiles that fit the target."""
    return Schedule.PORTABLE, schedule_of(Schedule.PORTABLE, spec.pass_).default(spec, dtype, limits)


def fields_of(config: Config) -> dict[str, Choice]:
    """A config as plain data, in the order of its declaration."""
    return {field.name: getattr(config, field.name) for field in fields(config)}

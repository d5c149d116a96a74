"""The schedules, by name and pass."""

from __future__ import annotations

from attnforge.codegen.schedules.base import Config, Limits, Schedule, ScheduleDefinition
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


def schedules_of(pass_: Pass) -> tuple[ScheduleDefinition, ...]:
    """Every schedule that has kernels of a pass."""
    return tuple(definition for definition in DEFINITIONS.values() if definition.pass_ is pass_)


def preferred_schedule(spec: AttentionSpec, dtype: DType, limits: Limits) -> Schedule:
    """The schedule whose default config is the fastest on a target, as far as that was measured.

    It need not be able to do the spec: where it cannot, portable is the default. On an H200 hopper's forward is 1.1 to
    1.6 times as fast as portable's at head dims 64, 128 and 256, its backward 1.07 to 1.44 times as fast as cuDNN's,
    portable's less (docs/hopper.md); below 64 neither was measured.
    """
    if limits.arch == "sm_90" and spec.head_dim >= 64:
        return Schedule.HOPPER
    return Schedule.PORTABLE


def default_configs(spec: AttentionSpec, dtype: DType, limits: Limits) -> tuple[tuple[Schedule, Config], ...]:
    """What to run when nothing was tuned, the preferred first.

    The last is portable, the one schedule that takes tensors of any layout.
    """
    preferred = DEFINITIONS.get((preferred_schedule(spec, dtype, limits), spec.pass_))
    portable = schedule_of(Schedule.PORTABLE, spec.pass_)
    found = [portable]
    if preferred not in (None, portable) and preferred.refusal(spec, dtype, limits) is None:
        found.insert(0, preferred)
    return tuple((definition.schedule, definition.default(spec, dtype, limits)) for definition in found)


def default_config(spec: AttentionSpec, dtype: DType, limits: Limits) -> tuple[Schedule, Config]:
    """What to run when nothing was tuned and the tensors' layout is no hindrance."""
    return default_configs(spec, dtype, limits)[0]

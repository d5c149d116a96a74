"""A compilation as plain data, to be sent to another process."""

from __future__ import annotations

import msgspec

from attnforge.codegen import AttentionSpec, Schedule, Variant, config_type, fields_of
from attnforge.problem import Problem
from attnforge.target import Target


class CompileJob(msgspec.Struct, frozen=True):
    """A variant, to be compiled for what a problem launches on a target."""

    spec: AttentionSpec
    schedule: Schedule
    config: dict[str, int | bool | str]
    problem: Problem
    target: Target

    @classmethod
    def of(cls, variant: Variant, problem: Problem, target: Target) -> CompileJob:
        """The job that compiles ``variant``."""
        return cls(variant.spec, variant.schedule, fields_of(variant.config), problem, target)

    @property
    def variant(self) -> Variant:
        """Raises CodegenError or msgspec.ValidationError when its parts do not belong together."""
        config = msgspec.convert(self.config, config_type(self.schedule, self.spec.pass_))
        return Variant(self.spec, self.schedule, config)

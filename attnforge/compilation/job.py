"""What is sent to a worker, as plain data."""

from __future__ import annotations

from typing import Self

import msgspec

from attnforge.codegen import AttentionSpec, Schedule, Variant, config_type, fields_of
from attnforge.problem import Problem
from attnforge.target import Target


class VariantData(msgspec.Struct, frozen=True):
    """A variant as plain data. Nothing in it names a module, a path or a template."""

    spec: AttentionSpec
    schedule: Schedule
    config: dict[str, int | bool | str]

    @classmethod
    def of(cls, variant: Variant) -> Self:
        """The data of ``variant``."""
        return cls(variant.spec, variant.schedule, {**fields_of(variant.config)})

    @property
    def variant(self) -> Variant:
        """Raises CodegenError or msgspec.ValidationError when its parts do not belong together."""
        config = msgspec.convert(self.config, config_type(self.schedule, self.spec.pass_))
        return Variant(self.spec, self.schedule, config)


class CompileJob(msgspec.Struct, frozen=True):
    """A variant, to be compiled for what a problem launches on a target."""

    variant: VariantData
    problem: Problem
    target: Target

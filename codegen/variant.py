"""One rendered kernel's identity: (spec, schedule, config) is one module, one file."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnforge.codegen.errors import ConfigError
from attnforge.codegen.schedules import schedule_of
from attnforge.codegen.schedules.base import Config, Schedule, ScheduleDefinition
from attnforge.codegen.spec import AttentionSpec


@dataclass(frozen=True, slots=True)
class Variant:
    """A spec, laid out by a schedule, with a config. Raises ConfigError when they do not belong together."""

    spec: AttentionSpec
    schedule: Schedule
    config: Config

    def __post_init__(self) -> None:
        expected = self.definition.config_type
        if type(self.config) is not expected:
            raise ConfigError("config", type(self.config).__name__, expected.__name__)

    @property
    def definition(self) -> ScheduleDefinition:
        """What the schedule says of itself for this spec's pass."""
        return schedule_of(self.schedule, self.spec.pass_)

    @property
    def is_deterministic(self) -> bool:
        """Whether its results repeat to the bit."""
        return self.definition.is_deterministic(self.config)

    @property
    def deterministic(self) -> Variant:
        """The nearest variant whose results repeat to the bit, if there is one; else this one."""
        return replace(self, config=self.definition.deterministic(self.config))

    @property
    def name(self) -> str:
        """A name that is unique among variants, such as ``portable/forward_d128_causal/m128_n64_w8_s3_chunks``."""
        return f"{self.schedule}/{self.spec.name}/{self.config.name}"

    @property
    def path(self) -> str:
        """Where its module lives below a kernels folder."""
        return f"{self.name}.py"

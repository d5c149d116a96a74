"""What a schedule must say of itself: its config, its template, its space, its constraints, where to start.

A new hardware scheme is one more module beside this one, one more template, and an entry in ``__init__``'s table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from attnforge.codegen.errors import ConfigError
from attnforge.codegen.spec import AttentionSpec, DType, Pass


class Schedule(StrEnum):
    """How an algorithm is laid on the hardware."""

    PORTABLE = "portable"
    """tl.load and tl.dot, for every GPU."""
    HOPPER = "hopper"
    """TMA, wgmma and specialised warps, for sm_90."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What of a target bounds a config."""

    arch: str
    """Such as sm_90 or gfx942."""
    shared_memory: int
    """Bytes that one block may use."""


class Config(Protocol):
    """The tunables of one schedule for one pass: a frozen dataclass of ints, bools and enums."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str:
        """A short name that is unique among configs of its type and safe in a path."""


Choice = int | bool | StrEnum
Context = Mapping[str, object]


def fields_of(config: Config) -> dict[str, Choice]:
    """A config as plain data, in the order of its declaration."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A static rule that excludes a config before anything is compiled."""

    name: str
    violation: Callable[[AttentionSpec, Config, DType, Limits], str | None]
    """The reason why a config is excluded, in words for the user; None when it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDefinition:
    """One schedule for one pass."""

    schedule: Schedule
    pass_: Pass
    config_type: type[Config]
    template: str
    """File name among the templates."""
    context: Callable[[AttentionSpec, Config], Context]
    """Everything the template needs, already decided."""
    space: Callable[[AttentionSpec, DType, Limits, bool], Mapping[str, tuple[Choice, ...]]]
    """Choices by config field; the flag asks for the quick space, of minutes."""
    constraints: tuple[Constraint, ...]
    default: Callable[[AttentionSpec, DType, Limits], Config]
    shared_memory_estimate: Callable[[AttentionSpec, Config, DType, Limits], int]
    """Bytes that the widest kernel will want, from its tiles; the compiler has the last word."""
    kernels: Mapping[str, tuple[str, ...]]
    """Config fields by the kernel they shape, for kernels that are timed apart and whose best tiles can be combined."""
    supports: Callable[[AttentionSpec, Limits], str | None]
    """Why this schedule cannot do a spec on a target; None when it can."""
    layouts_refused: str | None = None
    """Tensors for which the rendered plan() raises ValueError, in words; None when it takes any layout."""
    is_deterministic: Callable[[Config], bool] = lambda config: True
    """Whether a config's results repeat to the bit: not those of sums whose order is left to chance."""
    deterministic: Callable[[Config], Config] = lambda config: config
    """The config nearest to one whose results repeat to the bit."""

    def violations(self, spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> list[str]:
        """Every reason to exclude ``config``; empty when it may be tried."""
        found = (c.violation(spec, config, dtype, limits) for c in self.constraints)
        return [reason for reason in found if reason is not None]

    def refusal(self, spec: AttentionSpec, dtype: DType, limits: Limits) -> str | None:
        """Why this schedule has no kernel of a spec for a dtype and target; None when it has."""
        unsupported = self.supports(spec, limits)
        if unsupported is not None:
            return unsupported
        return next(iter(self.violations(spec, self.default(spec, dtype, limits), dtype, limits)), None)


def check_power_of_two(field: str, value: object, low: int, high: int) -> None:
    """Raise ConfigError unless ``value`` is a power of two within low..high."""
    if type(value) is not int or not low <= value <= high or value & (value - 1):
        raise ConfigError(field, value, f"a power of two from {low} to {high}")


def check_range(field: str, value: object, low: int, high: int) -> None:
    """Raise ConfigError unless ``value`` is an int within low..high."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(field, value, f"an integer from {low} to {high}")


def check_bool(field: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is a bool."""
    if type(value) is not bool:
        raise ConfigError(field, value, "true or false")


def check_enum(field: str, value: object, enum: type[StrEnum]) -> None:
    """Raise ConfigError unless ``value`` is a member of ``enum`` (a string that merely looks like one is not)."""
    if not isinstance(value, enum):
        raise ConfigError(field, value, " or ".join(enum))

"""What the tuner asks a measuring worker, and what that answers: JSON frames, never pickle."""

from __future__ import annotations

import msgspec

from attnforge.cache.schema import Conditions
from attnforge.codegen import DType
from attnforge.compilation import Failure, VariantData
from attnforge.problem import Problem
from attnforge.target import Target
from attnforge.tuner.measurement import Measurement


class Identify(msgspec.Struct, frozen=True, tag="identify"):
    """Asks what the worker runs on; answered by an Identity, once the device is open."""


class Measure(msgspec.Struct, frozen=True, tag="measure"):
    """Asks for a config's accuracy, and then its times; answered by a Measurement."""

    variant: VariantData
    problem: Problem
    best_ms: dict[str, float] = {}
    """The least milliseconds known of each kernel that the search shapes: what is clearly worse may stop early."""


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """Asks for times that can be compared, of configs that were measured before; answered by a Comparison."""

    variants: tuple[VariantData, ...]
    problem: Problem
    seed: int
    own_processes: tuple[int, ...] = ()
    """This tune's other workers, by their numbers: they may have the GPU open too."""


class CheckNumerics(msgspec.Struct, frozen=True, tag="check"):
    """Asks for a config's accuracy alone; answered by Accurate."""

    variant: VariantData
    dtype: DType


class Identity(msgspec.Struct, frozen=True, tag="identity"):
    """What a worker runs on."""

    target: Target
    triton: str
    torch: str
    devices: int = 1
    """How many such devices the worker sees; it uses the first."""
    uuid: str | None = None
    """Of that very GPU: when one is lost, new processes see another in its place."""

    def is_same_device(self, other: Identity) -> bool:
        """Whether both are of one GPU."""
        return (self.target, self.uuid) == (other.target, other.uuid)


class Comparison(msgspec.Struct, frozen=True, tag="comparison"):
    """Times of configs that took turns, in rounds of random order."""

    rounds_ms: tuple[tuple[float, ...], ...]
    """Milliseconds of each round, by config, in the order that was asked."""
    conditions: Conditions | None = None
    """What the device was like; None when nothing can tell."""


class Accurate(msgspec.Struct, frozen=True, tag="accurate"):
    """The config passed the accuracy gate."""


class Fatal(msgspec.Struct, frozen=True, tag="fatal"):
    """Nothing more can run on the device, which did not open or which the config has left so: this worker must be
    replaced."""

    failure: Failure


class NoDevice(msgspec.Struct, frozen=True, tag="no_device"):
    """There is no GPU to measure on."""

    message: str


Request = Identify | Measure | Compare | CheckNumerics
Reply = Identity | Measurement | Comparison | Accurate | Failure | Fatal | NoDevice

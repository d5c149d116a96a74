"""What comes of a try: a report, or a failure that is a value."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class FailureKind(StrEnum):
    """Where a config failed on its way to a measurement."""

    INVALID = "invalid"
    """Excluded by a static constraint, before anything was compiled."""
    COMPILE = "compile"
    """The compiler refused it."""
    RESOURCES = "resources"
    """It compiled, and needs more of the target than there is."""
    LAUNCH = "launch"
    """The driver refused the launch, or the kernel stopped with an error."""
    ACCURACY = "accuracy"
    """It ran, and its results are wrong."""
    TIMEOUT = "timeout"
    """It passed its deadline; its process group was killed."""
    CRASH = "crash"
    """Its process died."""


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """A config that yields nothing, and why: never swallowed, never raised."""

    kind: FailureKind
    message: str
    """For the user: one line first, the compiler's own words after it."""


class KernelReport(msgspec.Struct, frozen=True):
    """What one compiled kernel needs of its target."""

    name: str
    shared_bytes: int
    """Shared memory of one block."""
    registers: int
    """Registers of one thread."""
    spill_bytes: int
    """Bytes that one thread keeps in memory for want of registers."""
    serialised: tuple[str, ...]
    """ptxas' warnings C7510 to C7515: it waits after every wgmma, which takes away most of a Hopper kernel's speed."""


class CompileReport(msgspec.Struct, frozen=True, tag="report"):
    """All kernels of a variant, compiled for one target and problem."""

    kernels: tuple[KernelReport, ...]
    seconds: float
    """Wall time, next to nothing when triton's cache had them all."""

    @property
    def spill_bytes(self) -> int:
        """Of the kernel that spills the most."""
        return max(kernel.spill_bytes for kernel in self.kernels)

    @property
    def serialised(self) -> tuple[str, ...]:
        """Every kernel's wgmma warnings."""
        return tuple(warning for kernel in self.kernels for warning in kernel.serialised)

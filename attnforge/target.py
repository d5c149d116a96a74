"""The GPU that kernels are tuned for and run on; a msgspec struct, because tuned caches hold it as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from attnforge.codegen import Limits
from attnforge.errors import NoGpuError, UnknownTargetError

if TYPE_CHECKING:
    import torch
    from triton.backends.compiler import GPUTarget

_KNOWN_ARCHS: dict[str, tuple[int, int]] = {
    "sm_80": (166912, 108),  # A100
    "sm_86": (101376, 84),  # A40
    "sm_89": (101376, 128),  # RTX 4090
    "sm_90": (232448, 132),  # H100, H200
    "sm_100": (232448, 148),  # B200
    "sm_120": (101376, 170),  # RTX 5090
    "gfx942": (65536, 304),  # MI300X
    "gfx950": (163840, 256),  # MI355X
}
"""Shared memory per block (bytes, the opt-in limit) and SMs (compute units on AMD) of a typical part of each arch.

From the CUDA programming guide's table of compute capabilities and AMD's accelerator specifications.
"""


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU, or an arch alone: what kernels can be compiled for where the GPU itself is not at hand."""

    arch: Annotated[str, Meta(pattern="^(sm_[0-9]{2,3}|gfx[0-9a-f]{3,4})$")]
    """Such as sm_90 or gfx942."""
    name: Annotated[str, Meta(max_length=200)] | None
    """What the driver calls the GPU, such as NVIDIA H200; None for an arch alone."""
    sm_count: Annotated[int, Meta(ge=1, le=2**20)]
    """Streaming multiprocessors (compute units on AMD)."""
    shared_memory: Annotated[int, Meta(ge=1, le=2**30)]
    """Bytes that one block may use."""

    @classmethod
    def for_arch(cls, arch: str, others: Iterable[str] = ()) -> Target:
        """An arch alone, with the facts of a typical part. Raises UnknownTargetError, which lists the known ones, and
        ``others`` that could have been named."""
        if arch not in _KNOWN_ARCHS:
            raise UnknownTargetError(arch, dict.fromkeys((*_KNOWN_ARCHS, *others)))
        shared_memory, sm_count = _KNOWN_ARCHS[arch]
        return cls(arch=arch, name=None, sm_count=sm_count, shared_memory=shared_memory)

    @staticmethod
    def is_known(arch: str) -> bool:
        """Whether for_arch() has facts about it."""
        return arch in _KNOWN_ARCHS

    @classmethod
    def of_device(cls, device: torch.device | int) -> Target:
        """The GPU behind a torch device (``cuda`` in ROCm builds too)."""
        import torch

        facts = torch.cuda.get_device_properties(device)
        if torch.version.hip is not None:
            # Such as gfx942:sramecc+:xnack-, of which the first part is the arch.
            arch, shared_memory = facts.gcnArchName.split(":")[0], facts.shared_memory_per_block
        else:
            arch = f"sm_{facts.major}{facts.minor}"
            shared_memory = facts.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
        return cls(arch=arch, name=facts.name, sm_count=facts.multi_processor_count, shared_memory=shared_memory)

    @classmethod
    def current(cls) -> Target:
        """The GPU that torch would use now. Raises NoGpuError where there is none."""
        import torch

        if not torch.cuda.is_available():
            raise NoGpuError
        return cls.of_device(torch.cuda.current_device())

    @property
    def limits(self) -> Limits:
        """What bounds a config on this target."""
        return Limits(arch=self.arch, shared_memory=self.shared_memory)

    @property
    def slug(self) -> str:
        """The stem of its files, such as ``sm_90-nvidia-h200``, or ``sm_90`` for an arch alone."""
        if self.name is None:
            return self.arch
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:64]
        return f"{self.arch}-{name or 'unnamed'}"

    def triton_target(self) -> GPUTarget:
        """The same in Triton's words, for compiling without the GPU."""
        from triton.backends.compiler import GPUTarget

        if self.arch.startswith("sm_"):
            return GPUTarget("cuda", int(self.arch.removeprefix("sm_")), 32)
        # CDNA (gfx9) runs wavefronts of 64, RDNA (gfx10 and later) of 32.
        return GPUTarget("hip", self.arch, 64 if self.arch.startswith("gfx9") else 32)

"""What a process dispatches with: its kernels, tuned caches and GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from triton import knobs

from attnforge.cache.store import LoadedCache, TunedCacheStore
from attnforge.codegen import DType, Variant
from attnforge.kernels import Kernels
from attnforge.settings import Settings
from attnforge.target import Target

INTERPRETER = Target(arch="interpreter", name=None, sm_count=1, shared_memory=101376)
"""Stands for the GPU where Triton's interpreter runs the kernels: nothing is tuned for it."""


@dataclass
class Surroundings:
    """Read once, at the first call, and again after reload()."""

    kernels: Kernels
    store: TunedCacheStore
    interpreted: bool
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when they are loaded)."""
    failed: dict[tuple[Target, DType], set[Variant]] = field(default_factory=dict)
    """Variants that could not be launched."""
    _targets: dict[torch.device, Target] = field(default_factory=dict)
    _caches: dict[Target, Sequence[LoadedCache]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Surroundings:
        """Those that the environment asks for."""
        settings = Settings.from_environment()
        interpreted = bool(knobs.runtime.interpret)
        return cls(kernels=Kernels.installed(settings), store=TunedCacheStore(settings), interpreted=interpreted)

    def target_of(self, device: torch.device) -> Target:
        """The GPU behind a device; the interpreter's stand-in where that runs the kernels."""
        if device not in self._targets:
            self._targets[device] = INTERPRETER if self.interpreted else Target.of_device(device)
        return self._targets[device]

    def caches_for(self, target: Target) -> Sequence[LoadedCache]:
        """The target's tuned caches in look-up order, read at the first call."""
        if target not in self._caches:
            self._caches[target] = () if target is INTERPRETER else self.store.load(target)
        return self._caches[target]

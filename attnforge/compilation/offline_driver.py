"""A triton driver that has no GPU: kernels compile for a target through triton's own launch path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver


class OfflineDriver(DriverBase):  # type: ignore[misc]  # triton is untyped
    """Names a target, and can do nothing else.

    ``kernel.warmup(...)`` under it specialises, hashes and caches exactly as a launch on that GPU would, so that the
    launch later finds the compiled kernel on disk.
    """

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    @classmethod
    def is_active(cls) -> bool:
        """Never chosen by itself."""
        return False

    def get_current_target(self) -> GPUTarget:
        """The target that was asked for."""
        return self._target

    def get_current_device(self) -> str:
        """A name instead of an ordinal: a JITFunction keeps its compiled kernels, and the target, by device."""
        return f"{self._target.backend}:{self._target.arch}"

    def get_current_stream(self, device: object) -> int:
        """Asked for before every warm-up; nothing is put on it."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Tensors of an offline compilation hold nothing."""
        return torch.device("meta")

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Launchers are never built offline."""
        raise NotImplementedError("nothing is launched offline")

    def get_benchmarker(self) -> Any:
        """Nothing is timed offline."""
        raise NotImplementedError("nothing is timed offline")


@contextmanager
def compiling_for(target: GPUTarget) -> Iterator[None]:
    """Make ``target`` triton's current target within the block. It is process-wide, like triton's driver itself."""
    before = driver._active
    driver.set_active(OfflineDriver(target))
    try:
        yield
    finally:
        driver._active = before

"""Tuned, generated FlashAttention kernels in Triton.

``attention(q, k, v)`` runs them. Names are imported when they are first used: generating code needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnforge.codegen import AttentionSpec, DType, Pass
    from attnforge.errors import AttnforgeError, KernelNotGeneratedError, UnsupportedInputError
    from attnforge.ops import attention, reload

__version__ = "0.1.0"

_HOMES = {
    "AttentionSpec": "attnforge.codegen",
    "AttnforgeError": "attnforge.errors",
    "DType": "attnforge.codegen",
    "KernelNotGeneratedError": "attnforge.errors",
    "Pass": "attnforge.codegen",
    "UnsupportedInputError": "attnforge.errors",
    "attention": "attnforge.ops",
    "reload": "attnforge.ops",
}
"""Public names, and the modules that define them."""

__all__ = [
    "AttentionSpec",
    "AttnforgeError",
    "DType",
    "KernelNotGeneratedError",
    "Pass",
    "UnsupportedInputError",
    "__version__",
    "attention",
    "reload",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

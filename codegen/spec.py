"""What a kernel computes: everything that is fixed when its code is generated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from attnforge.codegen.errors import SpecError

SUPPORTED_HEAD_DIMS = range(16, 257, 8)
"""Head dims that the templates can render, for q/k and for v."""


class Pass(StrEnum):
    """Which of attention's computations a kernel does."""

    FORWARD = "forward"
    BACKWARD = "backward"


class DType(StrEnum):
    """Element types of q, k, v and out; the values are torch's names."""

    FP16 = "float16"
    BF16 = "bfloat16"
    FP32 = "float32"

    @property
    def bytes(self) -> int:
        """Size of one element."""
        return 4 if self is DType.FP32 else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What is computed. Raises SpecError on a value that no template supports."""

    pass_: Pass
    """Forward (out and LSE) or backward (dQ, dK, dV from LSE)."""
    head_dim: int
    """Head dim of q and k: a multiple of 8 from 16 to 256."""
    head_dim_v: int
    """Head dim of v and out: likewise, and free to differ."""
    causal: bool
    """Whether a query sees only keys up to its own position, aligned bottom-right (FlashAttention >= 2.1)."""

    def __post_init__(self) -> None:
        if not isinstance(self.pass_, Pass):
            raise SpecError("pass", self.pass_, " or ".join(Pass))
        for field in ("head_dim", "head_dim_v"):
            value = getattr(self, field)
            if type(value) is not int or value not in SUPPORTED_HEAD_DIMS:
                raise SpecError(field, value, "a multiple of 8 from 16 to 256")
        if type(self.causal) is not bool:
            raise SpecError("causal", self.causal, "true or false")

    @property
    def name(self) -> str:
        """A short name that is unique among specs and safe in a path, such as ``forward_d192x128_causal``."""
        dims = f"d{self.head_dim}" + ("" if self.head_dim == self.head_dim_v else f"x{self.head_dim_v}")
        return f"{self.pass_}_{dims}_{'causal' if self.causal else 'full'}"

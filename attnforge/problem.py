"""The run-time shape of a call, and the bucket of shapes that share a tuned entry.

Both are msgspec structs because tuned caches hold them as they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from attnforge.codegen import DType
from attnforge.errors import UnsupportedInputError

if TYPE_CHECKING:
    import torch

Extent = Annotated[int, Meta(ge=1, le=2**40)]
"""A size that is at least one; the bound is far above what a GPU holds and keeps arithmetic on it exact."""


class Problem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes of one call. Raises UnsupportedInputError on a size below one, or heads that kv_heads do not divide."""

    batch: Extent
    heads: Extent
    """Heads of q and out."""
    kv_heads: Extent
    """Heads of k and v: a divisor of ``heads``."""
    seqlen_q: Extent
    seqlen_k: Extent
    dtype: DType

    def __post_init__(self) -> None:
        for size in ("batch", "heads", "kv_heads", "seqlen_q", "seqlen_k"):
            if getattr(self, size) < 1:
                raise UnsupportedInputError(size, getattr(self, size), "at least 1")
        if self.heads % self.kv_heads:
            raise UnsupportedInputError("kv_heads", self.kv_heads, f"a divisor of the {self.heads} heads of q")

    @classmethod
    def of_tensors(cls, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Problem:
        """The sizes of a call with q (B, H, Sq, D), k (B, Hkv, Sk, D) and v (B, Hkv, Sk, Dv), checked before."""
        batch, heads, seqlen_q, _ = q.shape
        return cls(
            batch=batch,
            heads=heads,
            kv_heads=k.shape[1],
            seqlen_q=seqlen_q,
            seqlen_k=k.shape[2],
            dtype=DType(str(q.dtype).removeprefix("torch.")),
        )


class Bucket(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Problems of one dtype whose sizes round up to the same powers of two."""

    dtype: DType
    batch_heads: Extent
    """Upper edge of batch x heads of q: with seqlen_q it decides how many programs run."""
    seqlen_q: Extent
    """Upper edge of the queries."""
    seqlen_k: Extent
    """Upper edge of the keys: the length of the kernels' loops."""

    def __post_init__(self) -> None:
        for edge in ("batch_heads", "seqlen_q", "seqlen_k"):
            value = getattr(self, edge)
            if value < 1 or value & (value - 1):
                raise UnsupportedInputError(f"bucket's {edge}", value, "a power of two")

    @classmethod
    def of(cls, problem: Problem) -> Bucket:
        """The bucket that a problem falls into."""
        return cls(
            dtype=problem.dtype,
            batch_heads=_upper_edge(problem.batch * problem.heads),
            seqlen_q=_upper_edge(problem.seqlen_q),
            seqlen_k=_upper_edge(problem.seqlen_k),
        )

    @property
    def name(self) -> str:
        """A short name that is unique among buckets and safe in a path: ``bfloat16_bh64_q4096_k4096``."""
        return f"{self.dtype}_bh{self.batch_heads}_q{self.seqlen_q}_k{self.seqlen_k}"

    def distance(self, other: Bucket) -> float | None:
        """How far a config tuned for ``other`` is from home here: 0 at home, None when it does not carry over.

        Steps of two in the seqlens count one each, in batch x heads a half: it only decides how full the GPU is.
        Another dtype of the same size counts less than any step; one of another size has other tiles altogether.
        """
        if self.dtype.bytes != other.dtype.bytes:
            return None
        seqlen_steps = abs(math.log2(self.seqlen_q / other.seqlen_q)) + abs(math.log2(self.seqlen_k / other.seqlen_k))
        batch_heads_steps = abs(math.log2(self.batch_heads / other.batch_heads))
        return seqlen_steps + 0.5 * batch_heads_steps + (0.25 if self.dtype is not other.dtype else 0.0)


def _upper_edge(size: int) -> int:
    return 1 << (size - 1).bit_length()

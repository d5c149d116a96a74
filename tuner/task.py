"""What to tune: specs, each on problems of several sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnforge.codegen import AttentionSpec, DType, Pass
from attnforge.problem import Problem

COMMON_HEAD_DIMS = (128, 64, 96, 80, 256)
"""Tuned first, so that a tune that is interrupted has done most of what matters."""
TOKENS = 16384
"""Tokens of every problem: the batch is what is left beside the sequence length, as in the FlashAttention papers."""
HIDDEN = 2048
"""Heads x head dim of every problem, likewise."""
SEQLENS = (1024, 4096, 16384)
QUICK_SEQLENS = (4096,)


@dataclass(frozen=True, slots=True)
class Task:
    """A spec, and the problems to tune it on, from short to long."""

    spec: AttentionSpec
    problems: tuple[Problem, ...]

    @property
    def weight(self) -> float:
        """Its share of the time, relative to others: a backward compiles three kernels and runs 2.5 times as long."""
        return 2.0 if self.spec.pass_ is Pass.BACKWARD else 1.0


def tasks(specs: Iterable[AttentionSpec], seqlens: Iterable[int], dtype: DType) -> list[Task]:
    """The specs in the order of tuning, on self-attention problems: 16k tokens and 2048 hidden each.

    Raises UnsupportedInputError on a seqlen below one.
    """
    lengths = sorted(set(seqlens))
    ordered = sorted(specs, key=lambda spec: _place(spec.head_dim))
    return [Task(spec, tuple(self_attention(spec.head_dim, length, dtype) for length in lengths)) for spec in ordered]


def _place(head_dim: int) -> int:
    return COMMON_HEAD_DIMS.index(head_dim) if head_dim in COMMON_HEAD_DIMS else len(COMMON_HEAD_DIMS)


def self_attention(head_dim: int, seqlen: int, dtype: DType) -> Problem:
    """The problem that a head dim is tuned on at a sequence length."""
    heads = max(1, HIDDEN // head_dim)
    batch = max(1, TOKENS // max(1, seqlen))
    return Problem(batch=batch, heads=heads, kv_heads=heads, seqlen_q=seqlen, seqlen_k=seqlen, dtype=dtype)

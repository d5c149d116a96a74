"""What the bench measures: cases (one problem of one spec), and the work that each takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from attnforge.codegen import DType, Pass
from attnforge.errors import AttnforgeError

TOKENS = 16384
"""Tokens of every case: the batch is what is left beside the sequence length, as in the FlashAttention papers."""
HIDDEN = 2048
"""Heads x head dim of every case, likewise."""
HEAD_DIMS = (64, 128, 256)
SEQLENS = (1024, 4096, 16384)
QUICK_SEQLENS = (4096,)


class BadCaseError(AttnforgeError):
    """A grid that no problem can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One self-attention problem, as many queries as keys, equal qk and v head dims."""

    batch: int
    heads: int
    kv_heads: int
    seqlen: int
    head_dim: int
    causal: bool
    dtype: DType

    @property
    def name(self) -> str:
        """Such as ``D128 S4096 causal``."""
        return f"D{self.head_dim} S{self.seqlen} {'causal' if self.causal else 'full'}"

    def operations(self, pass_: Pass) -> float:
        """Floating-point operations: 4·B·H·S²·D forward, half of it if causal, 2.5 times that backward.

        FlashAttention's convention (Dao 2023, arXiv 2307.08691, section 4.1): two matrix products forward, five
        backward; the backward's recomputation counts once, and the causal diagonal is not counted in full.
        """
        forward = 4.0 * self.batch * self.heads * self.seqlen**2 * self.head_dim
        if self.causal:
            forward /= 2
        return forward if pass_ is Pass.FORWARD else 2.5 * forward


def grid(
    *,
    head_dims: Sequence[int] = HEAD_DIMS,
    seqlens: Sequence[int] = SEQLENS,
    causal: Sequence[bool] = (False, True),
    dtype: DType = DType.BF16,
    heads: int | None = None,
    kv_heads: int | None = None,
) -> list[Case]:
    """Every combination, 16k tokens and 2048 hidden each. Raises BadCaseError for sizes that no problem can have.

    Args:
        head_dims: head dims of q, k and v.
        seqlens: queries and keys; the batch is 16384 // seqlen, at least 1.
        causal: which masks.
        dtype: of q, k and v.
        heads: heads of q; 2048 // head_dim when None.
        kv_heads: heads of k and v; as many as of q when None.
    """
    if heads is not None and heads < 1:
        raise BadCaseError(f"--heads {heads}: supported: 1 or more")
    cases = []
    for head_dim, causal_, seqlen in product(head_dims, causal, seqlens):
        if not 1 <= head_dim <= HIDDEN:
            raise BadCaseError(f"--head-dim {head_dim}: supported: 1 to {HIDDEN}")
        if seqlen < 1:
            raise BadCaseError(f"--seqlen {seqlen}: supported: 1 or more")
        q_heads = heads or HIDDEN // head_dim
        if kv_heads is not None and (kv_heads < 1 or q_heads % kv_heads):
            raise BadCaseError(f"--kv-heads {kv_heads}: head dim {head_dim} has {q_heads} heads, not a multiple of it")
        case = Case(
            batch=max(1, TOKENS // seqlen),
            heads=q_heads,
            kv_heads=kv_heads or q_heads,
            seqlen=seqlen,
            head_dim=head_dim,
            causal=causal_,
            dtype=dtype,
        )
        cases.append(case)
    return cases

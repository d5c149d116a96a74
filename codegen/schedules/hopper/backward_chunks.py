"""How the hopper backward cuts a head dim, and which warpgroup computes which part of dq."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from attnforge.codegen.head_dims import Chunk, HeadDimSplit, split_head_dim
from attnforge.codegen.spec import AttentionSpec

WARPGROUPS = 2
PADDED_BEYOND = 96
"""Narrow head dims beyond it are padded to 128: three chunks, as of 112 = 64 + 32 + 16, Triton 3.9's ptxas serialises
(C7512)."""
WIDTHS = (64, 32, 16)
"""Of chunks: 128 bytes of fp16 are the widest rows that shared memory swizzles, 32 the narrowest."""


def is_wide(spec: AttentionSpec) -> bool:
    """Whether dk and dv of 64 keys are too many registers for one warpgroup: two share them then, by columns."""
    return max(spec.head_dim, spec.head_dim_v) > 128


def block_n(spec: AttentionSpec) -> int:
    """Keys of a program: 64 for each warpgroup, or for both where it is wide."""
    return 64 if is_wide(spec) else 64 * WARPGROUPS


def own_chunks(spec: AttentionSpec, block_m: int) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of dq's columns that each warpgroup computes."""
    return shares(spec.head_dim) if is_wide(spec) else dq_chunks(spec.head_dim, block_m)


def qk_chunks(spec: AttentionSpec, block_m: int) -> list[Chunk]:
    """The chunks of q's and k's columns."""
    return _in_order(own_chunks(spec, block_m))


def v_chunks(spec: AttentionSpec) -> list[Chunk]:
    """The chunks of v's and dout's columns."""
    if is_wide(spec):
        return _in_order(shares(spec.head_dim_v))
    is_padded = spec.head_dim_v > PADDED_BEYOND
    return list(split_head_dim(spec.head_dim_v, HeadDimSplit.PADDED if is_padded else HeadDimSplit.CHUNKS))


def _in_order(own: tuple[tuple[Chunk, ...], ...]) -> list[Chunk]:
    """The chunks of all warpgroups by their columns."""
    return sorted({chunk for chunks in own for chunk in chunks}, key=lambda chunk: chunk.offset)


def splits_rows(block_m: int) -> bool:
    """Whether each warpgroup computes half of dq's rows (a wgmma takes 64), not half of its columns."""
    return block_m == 64 * WARPGROUPS


def dq_chunks(head_dim: int, block_m: int) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of dq's columns that each warpgroup computes; those of all are the head dim's."""
    if not splits_rows(block_m):
        return _halves(head_dim)
    chunks = split_head_dim(head_dim, HeadDimSplit.CHUNKS)
    return (tuple(replace(chunk, suffix=str(index)) for index, chunk in enumerate(chunks)),) * WARPGROUPS


@cache
def _halves(head_dim: int) -> tuple[tuple[Chunk, ...], ...]:
    """Columns dealt out with as little padding, then as few for one warpgroup, then as few chunks as can be.

    80 -> (32 + 16, 32): 48 and 32 columns. Chunks beyond three cost more wgmma groups than one may wait for.
    """
    wanted = 128 if head_dim > PADDED_BEYOND else -(-head_dim // WIDTHS[-1]) * WIDTHS[-1]
    shares = [share for share in _splits(wanted, len(WIDTHS)) if len(share) > 1] or [(wanted,)]
    best = min((_deal(share) for share in shares), key=lambda dealt: (max(map(sum, dealt)), sum(map(len, dealt))))
    return _placed(best, head_dim)


def _splits(columns: int, most: int, widest: int = WIDTHS[0]) -> list[tuple[int, ...]]:
    """The ways to write ``columns`` as at most ``most`` widths, wide ones first."""
    if columns == 0:
        return [()]
    widths = [width for width in WIDTHS if width <= min(widest, columns)] if most else []
    return [(width, *rest) for width in widths for rest in _splits(columns - width, most - 1, width)]


def _deal(widths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Widths dealt out, each to the warpgroup that has the fewest columns."""
    dealt: list[list[int]] = [[] for _ in range(WARPGROUPS)]
    for width in widths:
        min(dealt, key=sum).append(width)
    return tuple(map(tuple, dealt))


def _placed(dealt: tuple[tuple[int, ...], ...], head_dim: int) -> tuple[tuple[Chunk, ...], ...]:
    """With their columns: wide chunks first, as the alignment of their rows in shared memory wants it."""
    order = sorted(
        ((width, warpgroup) for warpgroup, widths in enumerate(dealt) for width in widths), key=lambda each: -each[0]
    )
    placed: list[list[Chunk]] = [[] for _ in dealt]
    offset = 0
    for index, (width, warpgroup) in enumerate(order):
        placed[warpgroup].append(Chunk(str(index), offset, width, masked=offset + width > head_dim))
        offset += width
    return tuple(map(tuple, placed))


@cache
def shares(head_dim: int) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of a wide head dim's columns that each warpgroup has: of q, k, dq and dk, or of v and dv.

    As few columns for one warpgroup, then as little padding, then as few chunks as can be, of at most two chunks each:
    160 -> (64 + 16, 64 + 16), 256 -> (128, 128).
    """
    wanted = -(-head_dim // WIDTHS[-1]) * WIDTHS[-1]
    widths = (128, *WIDTHS)
    parts = [(width,) for width in widths] + [(a, b) for a in widths for b in widths if a > b and a + b <= widths[0]]
    dealt = [(a, b) for a in parts for b in parts if sum(a) >= sum(b) and sum(a) + sum(b) >= wanted]
    best = min(dealt, key=lambda each: (sum(each[0]), sum(each[1]), len(each[0]) + len(each[1])))
    return _placed(best, head_dim)

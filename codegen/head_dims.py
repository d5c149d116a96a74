"""A head dim as power-of-two pieces: Triton's block shapes are powers of two, head dims are not.

Padding 80 to 128 wastes over a third of the matrix work; 80 = 64 + 16 does not. On an H200 two chunks measured
1.06-1.35 x padding in the portable forward, three chunks mostly lost (0.89-0.98), so which one is a tunable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SMALLEST_CHUNK = 16
"""The narrowest operand that tl.dot takes."""


class HeadDimSplit(StrEnum):
    """How a head dim that is not a power of two is laid out in blocks."""

    CHUNKS = "chunks"
    PADDED = "padded"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One power-of-two slice of a head dim."""

    suffix: str
    """What its variables end in: empty when it is the only one, else 0, 1, ..."""
    offset: int
    """Its first column."""
    width: int
    """Its columns, a power of two."""
    masked: bool
    """Whether it sticks out over the head dim, so that loads and stores need a mask."""


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value`` (a positive int)."""
    return 1 << (value - 1).bit_length()


def chunk_widths(head_dim: int) -> tuple[int, ...]:
    """Powers of two from large to small that cover ``head_dim``: 80 -> (64, 16), 88 -> (64, 32), 120 -> (128,).

    Pieces that together are as wide as one padded block are merged into it: more chunks cost loads and barriers.
    """
    widest = max(SMALLEST_CHUNK, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - widest
    widths = (widest, *chunk_widths(rest)) if rest > 0 else (widest,)
    padded = next_power_of_two(max(head_dim, SMALLEST_CHUNK))
    return (padded,) if sum(widths) >= padded else widths


def split_head_dim(head_dim: int, split: HeadDimSplit) -> tuple[Chunk, ...]:
    """The chunks of a head dim, in order of their columns."""
    widths = chunk_widths(head_dim) if split is HeadDimSplit.CHUNKS else (next_power_of_two(head_dim),)
    chunks = []
    offset = 0
    for index, width in enumerate(widths):
        suffix = str(index) if len(widths) > 1 else ""
        chunks.append(Chunk(suffix, offset, width, masked=offset + width > head_dim))
        offset += width
    return tuple(chunks)


def best_split(*head_dims: int) -> HeadDimSplit:
    """The split to start from: chunks while no head dim needs more than two of them."""
    return HeadDimSplit.CHUNKS if all(len(chunk_widths(d)) <= 2 for d in head_dims) else HeadDimSplit.PADDED


def is_split_a_choice(*head_dims: int) -> bool:
    """Whether chunks and padding differ for any of the head dims."""
    return any(chunk_widths(d) != (next_power_of_two(d),) for d in head_dims)

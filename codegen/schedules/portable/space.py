"""Where the tuner looks for portable configs, and where everybody starts."""

from __future__ import annotations

from typing import Any

from attnforge.codegen.head_dims import HeadDimSplit, best_split, is_split_a_choice
from attnforge.codegen.schedules.base import Choice, Config, Limits
from attnforge.codegen.schedules.portable.config import (
    DKDV_FIELDS,
    DQ_FIELDS,
    PortableBackwardConfig,
    PortableForwardConfig,
    Tile,
)
from attnforge.codegen.schedules.portable.constraints import CONSTRAINTS
from attnforge.codegen.spec import AttentionSpec, DType

Space = dict[str, tuple[Choice, ...]]


def _pin_choices(spec: AttentionSpec, dtype: DType, limits: Limits) -> tuple[bool, ...]:
    """Whether to pin dK/dV accumulators, the default first.

    On an H200 the best pinned tile was 1.11-1.30 x as fast as the best unpinned one with the causal kernel's two loops
    (head dims 32 to 160) and 0.92-0.96 x with the other's one (64 and 128; benchmarks/sweeps). Wider full kernels were
    not swept both ways; triton 3.9 serialises them unpinned.
    """
    if limits.arch != "sm_90" or dtype is DType.FP32:
        return (False,)
    if spec.causal:
        return (True,)
    return (True, False) if max(spec.head_dim, spec.head_dim_v) > 128 else (False,)


def _split_choices(spec: AttentionSpec) -> tuple[Choice, ...]:
    if not is_split_a_choice(spec.head_dim, spec.head_dim_v):
        return (HeadDimSplit.CHUNKS,)
    return (HeadDimSplit.CHUNKS, HeadDimSplit.PADDED)


def forward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> Space:
    """Choices by field; ``quick`` leaves out what rarely won on an H200."""
    tile: Space
    if dtype is DType.FP32:
        tile = {"block_m": (16, 32, 64), "block_n": (16, 32), "num_warps": (4, 8), "num_stages": (1, 2)}
    elif quick:
        tile = {"block_m": (64, 128), "block_n": (32, 64), "num_warps": (4, 8), "num_stages": (2, 3)}
    else:
        tile = {"block_m": (64, 128, 256), "block_n": (32, 64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4)}
    return tile | {"head_dim_split": _split_choices(spec)}


def backward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> Space:
    """Choices by field; ``quick`` leaves out what rarely won on an H200."""
    loops: tuple[Choice, ...] = (32, 64, 128)
    stays: tuple[Choice, ...] = (64, 128)
    stages: tuple[Choice, ...] = (2, 3)
    warps: tuple[Choice, ...] = (4, 8)
    if dtype is DType.FP32:
        loops, stays, stages, warps = (16, 32), (16, 32), (1, 2), (4, 8)
    elif quick:
        loops = (32, 64)
    elif max(spec.head_dim, spec.head_dim_v) > 128:
        loops, stays = (16, 32, 64), (32, 64, 128)
    return {
        "dkdv_block_m": loops,
        "dkdv_block_n": stays,
        "dkdv_num_warps": warps,
        "dkdv_num_stages": stages,
        "dkdv_pin_accumulators": _pin_choices(spec, dtype, limits),
        "dq_block_m": stays,
        "dq_block_n": loops,
        "dq_num_warps": warps,
        "dq_num_stages": stages,
        "head_dim_split": _split_choices(spec),
    }


def _first_that_fits(spec: AttentionSpec, candidates: list[Config], dtype: DType, limits: Limits) -> Config:
    for candidate in candidates:
        if not any(constraint.violation(spec, candidate, dtype, limits) for constraint in CONSTRAINTS):
            return candidate
    return candidates[-1]


def forward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    """The first of the list that fits the target: on sm_90 the best of a sweep on an H200 (B*S = 16k tokens)."""
    tiles = [Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(32, 16, 2, 1)]
    if spec.causal and max(spec.head_dim, spec.head_dim_v) <= 128:
        tiles.insert(0, Tile(64, 64, 4, 3))
    if dtype is DType.FP32:
        tiles = [Tile(64, 32, 8, 2), Tile(32, 32, 8, 1), Tile(32, 16, 8, 1), Tile(16, 16, 4, 1)]
    split = best_split(spec.head_dim, spec.head_dim_v)
    fields = ("block_m", "block_n", "num_warps", "num_stages")
    candidates: list[Config] = [
        PortableForwardConfig(**dict(zip(fields, tile, strict=True)), head_dim_split=split) for tile in tiles
    ]
    return _first_that_fits(spec, candidates, dtype, limits)


def _backward_tiles(spec: AttentionSpec, dtype: DType) -> list[tuple[Tile, Tile]]:
    """(dK/dV, dQ) tiles from the best of the H200's sweep down to what fits anywhere."""
    if dtype is DType.FP32:
        return [(tile, tile) for tile in (Tile(32, 32, 8, 1), Tile(16, 16, 4, 1))]
    widest = max(spec.head_dim, spec.head_dim_v)
    fallback = [
        (Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
        (Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)),
        (Tile(32, 64, 8, 2), Tile(64, 32, 4, 2)),
        (Tile(32, 32, 4, 2), Tile(64, 16, 4, 2)),
        (Tile(16, 32, 4, 1), Tile(32, 16, 2, 1)),
    ]
    dq = Tile(64, 64, 4, 3) if spec.causal and widest <= 112 else Tile(128, 64, 8, 3)
    if widest <= 64:
        return [(Tile(128, 64, 4, 2), dq), *fallback]
    if widest <= 128:
        # A third stage of 128 columns leaves room for one program an SM, not two: 0.74-0.79 x the speed.
        return [(Tile(64, 64, 4, 3 if widest <= 112 else 2), dq), (Tile(64, 64, 4, 2), dq), *fallback]
    if widest <= 160:
        return [(Tile(64, 128, 8, 3), dq), *fallback]
    dkdv = Tile(32, 128, 8, 2) if widest <= 192 else Tile(64, 64, 8, 2)
    return [(dkdv, Tile(128, 32, 8, 3)), *fallback]


def backward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    """The first of the list that fits the target: on sm_90 the best of a sweep on an H200 (B*S = 16k tokens)."""
    split = best_split(spec.head_dim, spec.head_dim_v)
    pin = _pin_choices(spec, dtype, limits)[0]
    candidates: list[Config] = []
    for dkdv, dq in _backward_tiles(spec, dtype):
        fields: dict[str, Any] = dict(zip((*DKDV_FIELDS, *DQ_FIELDS), (*dkdv, pin, *dq), strict=True))
        candidates.append(PortableBackwardConfig(**fields, head_dim_split=split))
    return _first_that_fits(spec, candidates, dtype, limits)

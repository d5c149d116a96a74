"""Where the tuner looks for hopper configs, and where it starts."""

from __future__ import annotations

from attnforge.codegen.head_dims import HeadDimSplit, best_split, is_split_a_choice
from attnforge.codegen.schedules.base import Choice, Config, Limits
from attnforge.codegen.schedules.hopper.config import HopperForwardConfig
from attnforge.codegen.schedules.hopper.constraints import CONSTRAINTS
from attnforge.codegen.spec import AttentionSpec, DType

Space = dict[str, tuple[Choice, ...]]


def forward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> Space:
    """Choices by field. What lost everywhere on an H200 is left out: kernels without overlap, turns or persistence, and
    rings of one buffer (docs/hopper.md)."""
    splits: tuple[Choice, ...] = (HeadDimSplit.CHUNKS,)
    if is_split_a_choice(spec.head_dim):
        splits = (HeadDimSplit.CHUNKS, HeadDimSplit.PADDED)
    return {
        "warpgroups": (2, 3, 4),
        "block_n": (64, 128),
        "stages": (2, 3),
        "q_stages": (1, 2),
        "ping_pong": (True,),
        "overlap": (True,),
        "anchor": (True, False),
        "persistent": (True,),
        "heads_together": (1,) if not spec.causal else (1, 32) if quick else (1, 8, 32),
        "head_dim_split": splits,
    }


def forward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    """The largest tile that fits: on an H200 what was best, or within 3 % of it, at head dims 64, 128 and 256."""
    split = best_split(spec.head_dim)
    candidates = [
        HopperForwardConfig(
            warpgroups=warpgroups, block_n=block_n, stages=stages, q_stages=q_stages, ping_pong=True, overlap=True,
            anchor=False, persistent=True, heads_together=1, head_dim_split=split,
        )
        for depths in (((3, 2), (2, 2), (2, 1)), ((1, 1),))
        for warpgroups, block_n in ((3, 128), (2, 128), (2, 64), (2, 32))
        for stages, q_stages in depths
    ]  # fmt: skip
    for candidate in candidates:
        if not any(constraint.violation(spec, candidate, dtype, limits) for constraint in CONSTRAINTS):
            return candidate
    return candidates[-1]

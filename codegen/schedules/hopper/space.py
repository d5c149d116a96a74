"""Where the tuner looks for hopper configs when it is asked to, and where it starts."""

from __future__ import annotations

from attnforge.codegen.head_dims import HeadDimSplit, best_split, is_split_a_choice
from attnforge.codegen.schedules.base import Choice, Config, Limits
from attnforge.codegen.schedules.hopper.config import HopperForwardConfig
from attnforge.codegen.schedules.hopper.constraints import CONSTRAINTS
from attnforge.codegen.spec import AttentionSpec, DType

Space = dict[str, tuple[Choice, ...]]


def forward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> Space:
    """Choices by field; ``quick`` leaves out what never won in the study on an H200."""
    splits: tuple[Choice, ...] = (HeadDimSplit.CHUNKS,)
    if is_split_a_choice(spec.head_dim):
        splits = (HeadDimSplit.CHUNKS, HeadDimSplit.PADDED)
    return {
        "warpgroups": (2, 3),
        "block_n": (64, 128),
        "stages": (2, 3) if quick else (1, 2, 3, 4),
        "ping_pong": (True, False),
        "overlap": (True,) if quick else (True, False),
        "anchor": (True, False),
        "persistent": (False, True),
        "head_dim_split": splits,
    }


def forward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    """The widest key block that fits: the study's best configs, and nothing that spills. Not measured yet."""
    split = best_split(spec.head_dim)
    candidates = [
        HopperForwardConfig(
            warpgroups=2, block_n=block_n, stages=stages, ping_pong=True, overlap=True,
            # At head dim 160 the anchor of a block of 128 keys spills 256 bytes under Triton 3.9, none under 3.6.
            anchor=block_n < 128 or spec.head_dim <= 128,
            persistent=False, head_dim_split=split,
        )
        for block_n, stages in ((128, 2), (64, 3), (64, 2), (64, 1), (32, 1))
    ]  # fmt: skip
    for candidate in candidates:
        if not any(constraint.violation(spec, candidate, dtype, limits) for constraint in CONSTRAINTS):
            return candidate
    return candidates[-1]

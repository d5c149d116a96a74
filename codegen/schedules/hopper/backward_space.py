"""Where the tuner looks for configs of the hopper backward, and where it starts."""

from __future__ import annotations

from attnforge.codegen.schedules.base import Choice, Config, Limits
from attnforge.codegen.schedules.hopper.backward_config import DqOrder, HopperBackwardConfig
from attnforge.codegen.spec import AttentionSpec, DType

Space = dict[str, tuple[Choice, ...]]


def backward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> Space:
    """Choices by field; ``quick`` leaves out what is least likely to win. Nothing of it was measured yet."""
    return {
        "block_m": (64, 128),
        "stages": (2, 3) if quick else (1, 2, 3, 4),
        "dq_order": tuple(DqOrder),
        "stats_by_tma": (True,) if quick else (True, False),
        "k_in_registers": (False,) if quick else (False, True),
        "v_in_registers": (False, True),
        "early_dv": (True, False),
        "anchor": (True, False),
    }


def backward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    """Two buffers, and as much side by side as registers allow without spills. Not measured yet."""
    is_narrow = max(spec.head_dim, spec.head_dim_v) <= 96
    return HopperBackwardConfig(
        block_m=64, stages=2, dq_order=DqOrder.NEXT_STEP if is_narrow else DqOrder.SAME_STEP, stats_by_tma=True,
        k_in_registers=False, v_in_registers=False, early_dv=True, anchor=False,
    )  # fmt: skip

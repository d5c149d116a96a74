"""Where the tuner looks for configs of the hopper backward, and where it starts."""

from __future__ import annotations

from attnforge.codegen.schedules.base import Choice, Config, Limits
from attnforge.codegen.schedules.hopper.backward_config import DqOrder, HopperBackwardConfig
from attnforge.codegen.spec import AttentionSpec, DType

Space = dict[str, tuple[Choice, ...]]


def backward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> Space:
    """Choices by field."""
    return {
        "block_m": (64, 128),
        "stages": (2, 3) if quick else (1, 2, 3, 4),
        "dq_order": tuple(DqOrder),
        "stats_by_tma": (True, False),
        "k_in_registers": (False, True),
        "v_in_registers": (False, True),
        "anchor": (True, False),
    }


def backward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    """Two buffers, and dq a step late. Not measured yet."""
    return HopperBackwardConfig(
        block_m=64, stages=2, dq_order=DqOrder.NEXT_STEP if spec.head_dim <= 96 else DqOrder.SAME_STEP, stats_by_tma=True, k_in_registers=False, v_in_registers=False, anchor=True
    )

"""Where the tuner looks for configs of the hopper backward, and where it starts."""

from __future__ import annotations

from attnforge.codegen.schedules.base import Choice, Config, Limits
from attnforge.codegen.schedules.hopper.backward_chunks import is_wide
from attnforge.codegen.schedules.hopper.backward_config import DqOrder, HopperBackwardConfig
from attnforge.codegen.spec import AttentionSpec, DType

Space = dict[str, tuple[Choice, ...]]


def backward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> Space:
    """Choices by field; ``quick`` leaves out what never won on an H200 at head dims 64 and 128."""
    return {
        "block_m": (64, 128),
        "stages": (2, 3) if quick else (1, 2, 3, 4),
        "dq_order": tuple(DqOrder),
        "stats_by_tma": (True, False),
        "k_in_registers": (False, True),
        "v_in_registers": (False, True),
        "early_dv": (True, False),
        "anchor": (True, False),
    }


def backward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    """What is near the best with and without a mask, on an H200 at S=4096: within 2 % at head dim 64, the best at 128.

    Between these, where nothing was measured, as much side by side as registers allow.
    """
    widest = max(spec.head_dim, spec.head_dim_v)
    common = {"stats_by_tma": True, "k_in_registers": False, "v_in_registers": False}
    if widest <= 64:
        return HopperBackwardConfig(
            block_m=128, stages=2, dq_order=DqOrder.BEFORE_DP, early_dv=False, anchor=True, **common
        )
    if widest <= 96:
        return HopperBackwardConfig(
            block_m=64, stages=2, dq_order=DqOrder.NEXT_STEP, early_dv=True, anchor=False, **common
        )
    if is_wide(spec):
        # Shared memory for three stages and registers for dp beside dq end at head dim 192.
        order = DqOrder.SAME_STEP if widest <= 192 else DqOrder.BEFORE_DP
        return HopperBackwardConfig(block_m=64, stages=2, dq_order=order, early_dv=True, anchor=False, **common)
    return HopperBackwardConfig(block_m=64, stages=3, dq_order=DqOrder.SAME_STEP, early_dv=False, anchor=True, **common)

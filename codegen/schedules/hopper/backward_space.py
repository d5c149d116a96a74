"""Where the tuner looks for configs of the hopper backward, and where it starts."""

from __future__ import annotations

from attnforge.codegen.schedules.base import Choice, Config, Limits
from attnforge.codegen.schedules.hopper.backward_config import HopperBackwardConfig
from attnforge.codegen.spec import AttentionSpec, DType

Space = dict[str, tuple[Choice, ...]]


def backward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> Space:
    """Choices by field. Whether dq is ``ordered`` is the caller's to say, not the tuner's: it always costs time."""
    return {
        "block_m": (64, 128),
        "stages": (2, 3) if quick else (2, 3, 4),
        "ping_pong": (True, False),
        "kv_in_registers": (False, True),
        "ordered": (False,),
    }


def backward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    """What is best or near it on an H200, with and without a mask; between the head dims measured, a guess.

    At 80 and 96 K and V in registers and a third stage are 5 to 9 % faster at S=4096, under Triton 3.6: 3.9's ptxas
    serialises their products (C7512).
    """
    widest = max(spec.head_dim, spec.head_dim_v)
    return HopperBackwardConfig(
        block_m=128 if widest <= 64 else 64,
        stages=3 if 128 < widest <= 192 else 2,
        ping_pong=64 < widest <= 128,
        kv_in_registers=False,
        ordered=False,
    )

"""What rules a hopper config out before anything is compiled."""

from __future__ import annotations

from attnforge.codegen.head_dims import split_head_dim
from attnforge.codegen.schedules.base import Config, Constraint, Limits
from attnforge.codegen.schedules.hopper.config import HopperForwardConfig
from attnforge.codegen.spec import AttentionSpec, DType

ROWS = 64
"""Query rows of a warpgroup: what one wgmma takes."""
PRODUCER_REGISTERS = 24
"""A thread, the least that setmaxnreg gives."""
ADDRESSES = 28
"""Registers that a consumer's thread wants beside its tiles. Compiled kernels spill beyond it: with 3 warpgroups and
blocks of 128 keys head dim 80 by hundreds of bytes, with its wgmma serialised (C7512)."""
BARRIER_BYTES = 1024
"""Room for the barriers and for what Triton adds; compiled kernels take less."""


def consumer_registers(warpgroups: int) -> int:
    """Registers of a consumer's thread: what 64K registers leave beside the producer's, in setmaxnreg's steps of 8."""
    return {2: 240, 3: 160, 4: 112}[warpgroups]


def columns(spec: AttentionSpec, config: Config) -> int:
    """Columns that tiles of q, k and v take, padding included."""
    assert isinstance(config, HopperForwardConfig)
    return sum(chunk.width for chunk in split_head_dim(spec.head_dim, config.head_dim_split))


def shared_memory_estimate(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> int:
    """Bytes of Q, of the rings of K and V, and of the barriers."""
    assert isinstance(config, HopperForwardConfig)
    rows = config.q_stages * config.warpgroups * ROWS + 2 * config.stages * config.block_n
    return dtype.bytes * rows * columns(spec, config) + BARRIER_BYTES


def _is_of_two_bytes(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    return "it multiplies fp16 and bf16 only" if dtype is DType.FP32 else None


def _fits_shared_memory(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    estimate = shared_memory_estimate(spec, config, dtype, limits)
    if estimate <= limits.shared_memory:
        return None
    return f"its tiles need {estimate} bytes of shared memory, {limits.arch} has {limits.shared_memory} per block"


def _fits_registers(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    """A thread holds half of the columns of the output and of the scores, in fp32, and of P, in 16 bits."""
    assert isinstance(config, HopperForwardConfig)
    operands = config.block_n // 4 if config.overlap else 0
    needed = columns(spec, config) // 2 + config.block_n // 2 + operands
    most = consumer_registers(config.warpgroups) - ADDRESSES
    if needed <= most:
        return None
    return (
        f"output, scores and P need {needed} registers a thread; with {config.warpgroups} warpgroups {most} is the most"
    )


def _anchors_an_overlap(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    assert isinstance(config, HopperForwardConfig)
    return "there is no overlap to anchor" if config.anchor and not config.overlap else None


def _fetches_ahead(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    assert isinstance(config, HopperForwardConfig)
    if config.q_stages == 1 or (config.persistent and config.overlap):
        return None
    return "a second buffer of Q is for persistent programs that overlap softmax and matrix work"


def _orders_what_differs(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    assert isinstance(config, HopperForwardConfig)
    if config.heads_together == 1 or spec.causal:
        return None
    return "where it is not causal all tiles cost the same, in any order"


CONSTRAINTS = (
    Constraint("dtype", _is_of_two_bytes),
    Constraint("shared memory", _fits_shared_memory),
    Constraint("registers", _fits_registers),
    Constraint("anchor", _anchors_an_overlap),
    Constraint("q_stages", _fetches_ahead),
    Constraint("heads_together", _orders_what_differs),
)

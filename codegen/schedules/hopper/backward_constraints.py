"""What rules a config of the hopper backward out before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterable

from attnforge.codegen.head_dims import Chunk
from attnforge.codegen.schedules.base import Config, Constraint, Limits
from attnforge.codegen.schedules.hopper.backward_chunks import block_n, is_wide, qk_chunks, shares, v_chunks
from attnforge.codegen.schedules.hopper.backward_config import HopperBackwardConfig
from attnforge.codegen.schedules.hopper.constraints import consumer_registers
from attnforge.codegen.spec import AttentionSpec, DType

ADDRESSES = 16
"""Registers that a warpgroup's thread wants beside its tiles, under Triton 3.6.

3.9's ptxas serialises (C7512) some with K and V in registers that this admits, which the tuner finds slow.
"""
WIDEST_OF_128_QUERIES = 128
"""Columns of q and v together: beside scores and dp of 128 queries head dim 80 spills 588 to 984 bytes."""


def columns(chunks: Iterable[Chunk]) -> int:
    """Columns of a head dim's chunks, padding included."""
    return sum(chunk.width for chunk in chunks)


def shared_memory_estimate(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> int:
    """Bytes of K and V, of the rings of q and dout, of ds (and p, where it is wide), of the stats and the barriers."""
    assert isinstance(config, HopperBackwardConfig)
    qk, v = qk_chunks(spec, config.block_m), v_chunks(spec)
    operands = (block_n(spec) + config.stages * config.block_m) * (columns(qk) + columns(v))
    exchanged = 3 * 64 * 64 if is_wide(spec) else 8 * 64 * config.block_m
    # Triton hands each partition its arguments through shared memory: more of them for more chunks.
    arguments = 576 + 192 * max(len(qk), len(v))
    return dtype.bytes * (operands + exchanged) + 4 * 2 * config.stages * config.block_m + arguments


def _is_of_two_bytes(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    return "it multiplies fp16 and bf16 only" if dtype is DType.FP32 else None


def _fits_shared_memory(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    estimate = shared_memory_estimate(spec, config, dtype, limits)
    if estimate <= limits.shared_memory:
        return None
    return f"its tiles need {estimate} bytes of shared memory, {limits.arch} has {limits.shared_memory} per block"


def _fits_registers(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    """A thread holds half of the columns of dk, dv, scores and dp, in fp32, and of K and V, in 16 bits, if they are.

    Where it is wide, that is of half of the columns of dk and dv, and of dq beside them.
    """
    assert isinstance(config, HopperBackwardConfig)
    qk, v = columns(qk_chunks(spec, config.block_m)), columns(v_chunks(spec))
    if is_wide(spec):
        needed = columns(shares(spec.head_dim)[0]) + columns(shares(spec.head_dim_v)[0]) // 2
        most = consumer_registers(2) - 2 * ADDRESSES
    else:
        needed = (qk + v) // 2 + config.block_m + (qk + v) // 4 * config.kv_in_registers
        most = consumer_registers(2) - ADDRESSES
    if config.block_m == 128 and qk + v > WIDEST_OF_128_QUERIES:
        return f"scores and dp of 128 queries leave too few registers for dk and dv of {qk} + {v} columns"
    if needed <= most:
        return None
    return f"its tiles need {needed} registers a thread; {most} is the most"


def _is_a_wide_one(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    """What the kernel of wide head dims has no choice of."""
    assert isinstance(config, HopperBackwardConfig)
    if not is_wide(spec):
        return None
    if config.block_m != 64:
        return "head dims beyond 128 take blocks of 64 queries"
    if config.ping_pong or config.kv_in_registers:
        return "head dims beyond 128 have warpgroups that differ, which take no turns, and no registers for K and V"
    return None


CONSTRAINTS = (
    Constraint("dtype", _is_of_two_bytes),
    Constraint("shared memory", _fits_shared_memory),
    Constraint("registers", _fits_registers),
    Constraint("wide", _is_a_wide_one),
)

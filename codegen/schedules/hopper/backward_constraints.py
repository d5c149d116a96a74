"""What rules a config of the hopper backward out before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterable

from attnforge.codegen.head_dims import Chunk, HeadDimSplit, split_head_dim
from attnforge.codegen.schedules.base import Config, Constraint, Limits
from attnforge.codegen.schedules.hopper.backward_chunks import dq_chunks, in_order, is_wide, shares
from attnforge.codegen.schedules.hopper.backward_config import DqOrder, HopperBackwardConfig
from attnforge.codegen.schedules.hopper.constraints import consumer_registers
from attnforge.codegen.spec import AttentionSpec, DType

BLOCK_N = 128
"""Keys of a program: 64 for each of two warpgroups."""
ADDRESSES = 16
"""Registers that a warpgroup's thread wants beside its tiles: with 224 of them kernels spill up to 144 bytes."""
WIDEST_OF_128_QUERIES = 128
"""Columns of q and v together: beside scores and dp of 128 queries head dim 80 spills 588 to 984 bytes."""


def columns(chunks: Iterable[Chunk]) -> int:
    """Columns of a head dim's chunks, padding included."""
    return sum(chunk.width for chunk in chunks)


def _chunks_of(spec: AttentionSpec, config: HopperBackwardConfig) -> set[Chunk]:
    """The chunks of q and k."""
    return {chunk for chunks in dq_chunks(spec.head_dim, config.block_m) for chunk in chunks}


def shared_memory_estimate(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> int:
    """Bytes of K and V, of the rings of q and dout, of ds twice, of dq in fp32, and of the barriers."""
    assert isinstance(config, HopperBackwardConfig)
    if is_wide(spec):
        return _wide_shared_memory(spec, config, dtype)
    v_chunks = split_head_dim(spec.head_dim_v, HeadDimSplit.CHUNKS)
    qk, v = columns(_chunks_of(spec, config)), columns(v_chunks)
    operands = (BLOCK_N + config.stages * config.block_m) * (qk + v) + 2 * BLOCK_N * config.block_m
    stats = 2 * config.stages * config.block_m if config.stats_by_tma else 0
    # Triton hands each partition its arguments through shared memory: more of them for more chunks.
    arguments = 576 + 192 * max(map(len, (_chunks_of(spec, config), v_chunks)))
    return dtype.bytes * operands + 4 * (config.block_m * qk + stats) + arguments


def _wide_shared_memory(spec: AttentionSpec, config: HopperBackwardConfig, dtype: DType) -> int:
    """Bytes of K and V of 64 keys, of the rings of q and dout, of p twice and ds, of the stats and the barriers."""
    qk_chunks, v_chunks = in_order(shares(spec.head_dim)), in_order(shares(spec.head_dim_v))
    operands = (64 + config.stages * config.block_m) * (columns(qk_chunks) + columns(v_chunks)) + 3 * 64 * 64
    arguments = 576 + 192 * max(len(qk_chunks), len(v_chunks))
    return dtype.bytes * operands + 4 * 2 * config.stages * config.block_m + arguments


def _is_of_two_bytes(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    return "it multiplies fp16 and bf16 only" if dtype is DType.FP32 else None


def _fits_shared_memory(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    estimate = shared_memory_estimate(spec, config, dtype, limits)
    if estimate <= limits.shared_memory:
        return None
    return f"its tiles need {estimate} bytes of shared memory, {limits.arch} has {limits.shared_memory} per block"


def _fits_registers(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    """A thread holds half of the columns of dk, dv, scores and dp, in fp32; beside them p in 16 bits, where dv is early
    or dq in the next step, and half of the columns of its share of dq, where that is multiplied next to dp.
    """
    assert isinstance(config, HopperBackwardConfig)
    if is_wide(spec):
        return _fits_wide_registers(spec, config)
    qk, v = columns(_chunks_of(spec, config)), columns(split_head_dim(spec.head_dim_v, HeadDimSplit.CHUNKS))
    needed = (qk + v) // 2 + config.block_m
    if config.early_dv or config.dq_order is DqOrder.NEXT_STEP:
        needed += config.block_m // 4
    if config.dq_order is DqOrder.NEXT_STEP:
        needed += max(map(columns, dq_chunks(spec.head_dim, config.block_m))) // 2
    needed += qk // 4 * config.k_in_registers + v // 4 * config.v_in_registers
    if config.block_m == 128 and qk + v > WIDEST_OF_128_QUERIES:
        return f"scores and dp of 128 queries leave too few registers for dk and dv of {qk} + {v} columns"
    most = consumer_registers(2) - ADDRESSES
    if needed <= most:
        return None
    return f"its tiles need {needed} registers a thread; {most} is the most"


def _fits_wide_registers(spec: AttentionSpec, config: HopperBackwardConfig) -> str | None:
    """A thread holds half of its warpgroup's columns of dk, dv and dq; dp too, where it is multiplied beside dq."""
    own, own_v = shares(spec.head_dim)[0], shares(spec.head_dim_v)[0]
    needed = columns(own) + columns(own_v) // 2 + 32 * (config.dq_order is DqOrder.SAME_STEP)
    most = consumer_registers(2) - 2 * ADDRESSES
    return None if needed <= most else f"dk, dv, dq and dp need {needed} registers a thread; {most} is the most"


def _anchors_something(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    assert isinstance(config, HopperBackwardConfig)
    return "dv's matrix work is an anchor already" if config.anchor and config.early_dv else None


def _saves_registers(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    """At head dim 128 it spills 268 to 420 bytes with an early dv."""
    assert isinstance(config, HopperBackwardConfig)
    if is_wide(spec) or not (config.early_dv and config.dq_order is DqOrder.BEFORE_DP):
        return None
    return "dq before dp is for want of registers, of which an early dv takes more"


def _is_a_wide_one(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    """What the kernel of wide head dims has no choice of."""
    assert isinstance(config, HopperBackwardConfig)
    if not is_wide(spec):
        return None
    if config.block_m != 64 or config.stages < 2:
        return "head dims beyond 128 take blocks of 64 queries, of which two are at work"
    if config.dq_order is DqOrder.NEXT_STEP or not config.stats_by_tma:
        return "head dims beyond 128 take dq in the same step and the LSE by TMA"
    if config.k_in_registers or config.v_in_registers or config.anchor:
        return "head dims beyond 128 leave no registers for K and V, and need no anchor"
    return None


CONSTRAINTS = (
    Constraint("dtype", _is_of_two_bytes),
    Constraint("shared memory", _fits_shared_memory),
    Constraint("registers", _fits_registers),
    Constraint("anchor", _anchors_something),
    Constraint("early dv", _saves_registers),
    Constraint("wide", _is_a_wide_one),
)

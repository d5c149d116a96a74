"""The hopper schedule's backward: its definition."""

from __future__ import annotations

from attnforge.codegen.head_dims import HeadDimSplit, split_head_dim
from attnforge.codegen.schedules.base import Config, Context, Limits, Schedule, ScheduleDefinition
from attnforge.codegen.schedules.hopper.backward_chunks import (
    WARPGROUPS,
    WIDTHS,
    dq_chunks,
    in_order,
    is_wide,
    shares,
    splits_rows,
)
from attnforge.codegen.schedules.hopper.backward_config import FIELDS, DqOrder, HopperBackwardConfig
from attnforge.codegen.schedules.hopper.backward_constraints import CONSTRAINTS, columns, shared_memory_estimate
from attnforge.codegen.schedules.hopper.backward_space import backward_default, backward_space
from attnforge.codegen.schedules.hopper.constraints import PRODUCER_REGISTERS, consumer_registers
from attnforge.codegen.spec import AttentionSpec, Pass

WIDEST = 256
"""Of head dims: beyond it dk, dv and dq leave a warpgroup's threads too few registers for the rest."""


def _context(spec: AttentionSpec, config: Config) -> Context:
    assert isinstance(config, HopperBackwardConfig)
    if is_wide(spec):
        return _wide_context(spec, config)
    own = dq_chunks(spec.head_dim, config.block_m)
    qk_chunks = sorted({chunk for chunks in own for chunk in chunks}, key=lambda chunk: chunk.offset)
    v_chunks = split_head_dim(spec.head_dim_v, HeadDimSplit.CHUNKS)
    stats_bytes = 4 * config.block_m if config.stats_by_tma else 0
    return {
        "is_wide": False,
        "qk_chunks": qk_chunks,
        "own_chunks": own,
        "splits_rows": splits_rows(config.block_m),
        "v_chunks": v_chunks,
        "widths": sorted({chunk.width for chunk in (*qk_chunks, *v_chunks)}),
        "columns": columns(qk_chunks),
        "columns_v": columns(v_chunks),
        "q_bytes": 2 * config.block_m * columns(qk_chunks) + stats_bytes,
        "dout_bytes": 2 * config.block_m * columns(v_chunks) + stats_bytes,
        "delays_dq": config.dq_order is not DqOrder.SAME_STEP,
        "dp_is_late": config.dq_order is DqOrder.BEFORE_DP,
        "early_groups": len(v_chunks) if config.early_dv else 0,
        "consumer_registers": consumer_registers(WARPGROUPS),
        "producer_registers": PRODUCER_REGISTERS,
    }


def _wide_context(spec: AttentionSpec, config: HopperBackwardConfig) -> Context:
    own, own_v = shares(spec.head_dim), shares(spec.head_dim_v)
    qk_chunks, v_chunks = in_order(own), in_order(own_v)
    stats_bytes = 4 * config.block_m
    return {
        "is_wide": True,
        "qk_chunks": qk_chunks,
        "own_chunks": own,
        "v_chunks": v_chunks,
        "own_v_chunks": own_v,
        "is_dp_early": config.dq_order is DqOrder.SAME_STEP,
        "widths": sorted({chunk.width for chunk in (*qk_chunks, *v_chunks)}),
        "columns": columns(qk_chunks),
        "columns_v": columns(v_chunks),
        "q_bytes": 2 * config.block_m * columns(qk_chunks) + stats_bytes,
        "dout_bytes": 2 * config.block_m * columns(v_chunks) + stats_bytes,
        "consumer_registers": consumer_registers(WARPGROUPS),
        "producer_registers": PRODUCER_REGISTERS,
    }


def _supports(spec: AttentionSpec, limits: Limits) -> str | None:
    if limits.arch != "sm_90":
        return f"it is for sm_90, which {limits.arch} is not"
    if max(spec.head_dim, spec.head_dim_v) > WIDEST:
        return f"its registers hold dk and dv of head dims up to {WIDEST}, not {spec.head_dim} and {spec.head_dim_v}"
    if spec.head_dim <= WIDTHS[-1]:
        return f"its two warpgroups halve dq's columns, of which {spec.head_dim} are too few"
    return None


BACKWARD = ScheduleDefinition(
    schedule=Schedule.HOPPER,
    pass_=Pass.BACKWARD,
    config_type=HopperBackwardConfig,
    template="hopper_backward.py.jinja",
    context=_context,
    space=backward_space,
    constraints=CONSTRAINTS,
    default=backward_default,
    shared_memory_estimate=shared_memory_estimate,
    kernels={"gradients": FIELDS},
    supports=_supports,
    layouts_refused="tensors that TMA cannot address",
    is_deterministic=lambda config: False,  # shares of dq are added as they come
)

"""The hopper schedule's backward: its definition."""

from __future__ import annotations

from dataclasses import replace

from attnforge.codegen.schedules.base import Config, Context, Limits, Schedule, ScheduleDefinition
from attnforge.codegen.schedules.hopper.backward_chunks import (
    WARPGROUPS,
    WIDTHS,
    block_n,
    is_wide,
    own_chunks,
    qk_chunks,
    shares,
    splits_rows,
    v_chunks,
)
from attnforge.codegen.schedules.hopper.backward_config import FIELDS, HopperBackwardConfig
from attnforge.codegen.schedules.hopper.backward_constraints import CONSTRAINTS, columns, shared_memory_estimate
from attnforge.codegen.schedules.hopper.backward_space import backward_default, backward_space
from attnforge.codegen.schedules.hopper.constraints import PRODUCER_REGISTERS, consumer_registers
from attnforge.codegen.spec import AttentionSpec, Pass


def _context(spec: AttentionSpec, config: Config) -> Context:
    assert isinstance(config, HopperBackwardConfig)
    qk, v = qk_chunks(spec, config.block_m), v_chunks(spec)
    stats_bytes = 4 * config.block_m
    return {
        "is_wide": is_wide(spec),
        "block_n": block_n(spec),
        "qk_chunks": qk,
        "v_chunks": v,
        "own_chunks": own_chunks(spec, config.block_m),
        "own_v_chunks": shares(spec.head_dim_v),
        "splits_rows": splits_rows(config.block_m),
        "widths": sorted({chunk.width for chunk in (*qk, *v)}),
        "columns": columns(qk),
        "columns_v": columns(v),
        "q_bytes": 2 * config.block_m * columns(qk) + stats_bytes,
        "dout_bytes": 2 * config.block_m * columns(v) + stats_bytes,
        "consumer_registers": consumer_registers(WARPGROUPS),
        "producer_registers": PRODUCER_REGISTERS,
    }


def _is_ordered(config: Config) -> bool:
    assert isinstance(config, HopperBackwardConfig)
    return config.ordered


def _ordered(config: Config) -> Config:
    assert isinstance(config, HopperBackwardConfig)
    return replace(config, ordered=True)


def _supports(spec: AttentionSpec, limits: Limits) -> str | None:
    if limits.arch != "sm_90":
        return f"it is for sm_90, which {limits.arch} is not"
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
    is_deterministic=_is_ordered,
    deterministic=_ordered,
)

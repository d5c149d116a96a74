"""The hopper schedule: warp-specialised Gluon kernels for sm_90, fed by TMA."""

from __future__ import annotations

from attnforge.codegen.head_dims import split_head_dim
from attnforge.codegen.schedules.base import Config, Context, Limits, Schedule, ScheduleDefinition
from attnforge.codegen.schedules.hopper.backward import BACKWARD
from attnforge.codegen.schedules.hopper.backward_config import HopperBackwardConfig
from attnforge.codegen.schedules.hopper.config import FIELDS, HopperForwardConfig
from attnforge.codegen.schedules.hopper.constraints import (
    CONSTRAINTS,
    PRODUCER_REGISTERS,
    columns,
    consumer_registers,
    shared_memory_estimate,
)
from attnforge.codegen.schedules.hopper.space import forward_default, forward_space
from attnforge.codegen.spec import AttentionSpec, Pass

__all__ = ["BACKWARD", "FORWARD", "HopperBackwardConfig", "HopperForwardConfig"]


def _context(spec: AttentionSpec, config: Config) -> Context:
    assert isinstance(config, HopperForwardConfig)
    return {
        "chunks": split_head_dim(spec.head_dim, config.head_dim_split),
        "row_bytes": 2 * columns(spec, config),
        "consumer_registers": consumer_registers(config.warpgroups),
        "producer_registers": PRODUCER_REGISTERS,
    }


def _supports(spec: AttentionSpec, limits: Limits) -> str | None:
    if limits.arch != "sm_90":
        return f"it is for sm_90, which {limits.arch} is not"
    if spec.head_dim != spec.head_dim_v:
        # The output leaves through the shared memory that Q came in by.
        return f"its head dims must be equal, not {spec.head_dim} and {spec.head_dim_v}"
    return None


FORWARD = ScheduleDefinition(
    schedule=Schedule.HOPPER,
    pass_=Pass.FORWARD,
    config_type=HopperForwardConfig,
    template="hopper_forward.py.jinja",
    context=_context,
    space=forward_space,
    constraints=CONSTRAINTS,
    default=forward_default,
    shared_memory_estimate=shared_memory_estimate,
    kernels={"forward": FIELDS},
    supports=_supports,
    layouts_refused="tensors that TMA cannot address",
)

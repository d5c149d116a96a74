"""The portable schedule: tl.load + tl.dot, for every GPU that Triton knows, and for its interpreter."""

from __future__ import annotations

from attnforge.codegen.head_dims import split_head_dim
from attnforge.codegen.schedules.base import Config, Context, Limits, Schedule, ScheduleDefinition
from attnforge.codegen.schedules.portable.config import (
    DKDV_FIELDS,
    DQ_FIELDS,
    TILE_FIELDS,
    PortableBackwardConfig,
    PortableForwardConfig,
    split_of,
)
from attnforge.codegen.schedules.portable.constraints import CONSTRAINTS, shared_memory_estimate
from attnforge.codegen.schedules.portable.space import (
    backward_default,
    backward_space,
    forward_default,
    forward_space,
)
from attnforge.codegen.spec import AttentionSpec, Pass

__all__ = ["BACKWARD", "FORWARD", "PortableBackwardConfig", "PortableForwardConfig"]


def _context(spec: AttentionSpec, config: Config) -> Context:
    context: dict[str, object] = {
        "qk_chunks": split_head_dim(spec.head_dim, split_of(config)),
        "v_chunks": split_head_dim(spec.head_dim_v, split_of(config)),
        # Triton notices strides that are multiples of 16; head dims such as 72 make contiguous strides that are not.
        "hint_alignment": spec.head_dim % 16 != 0 or spec.head_dim_v % 16 != 0,
    }
    if isinstance(config, PortableBackwardConfig):
        # Whole blocks of either kernel read delta and the LSE without a mask.
        context["delta_block"] = max(config.dkdv_block_m, config.dq_block_m)
    return context


def _supports(spec: AttentionSpec, limits: Limits) -> str | None:
    return None


FORWARD = ScheduleDefinition(
    schedule=Schedule.PORTABLE,
    pass_=Pass.FORWARD,
    config_type=PortableForwardConfig,
    template="portable_forward.py.jinja",
    context=_context,
    space=forward_space,
    constraints=CONSTRAINTS,
    default=forward_default,
    shared_memory_estimate=shared_memory_estimate,
    kernels={"forward": TILE_FIELDS},
    supports=_supports,
)
BACKWARD = ScheduleDefinition(
    schedule=Schedule.PORTABLE,
    pass_=Pass.BACKWARD,
    config_type=PortableBackwardConfig,
    template="portable_backward.py.jinja",
    context=_context,
    space=backward_space,
    constraints=CONSTRAINTS,
    default=backward_default,
    shared_memory_estimate=shared_memory_estimate,
    kernels={"dkdv": DKDV_FIELDS, "dq": DQ_FIELDS},
    supports=_supports,
)

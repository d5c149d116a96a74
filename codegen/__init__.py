"""Spec + config -> source text of a Triton kernel.

Pure: imports no torch and no triton, touches no GPU, no clock and no environment; the same spec, config and templates
always render to the same bytes.
"""

from attnforge.codegen.errors import CodegenError, ConfigError, SpecError
from attnforge.codegen.head_dims import Chunk, HeadDimSplit
from attnforge.codegen.render import TemplateSet, render
from attnforge.codegen.schedules import (
    config_type,
    default_config,
    default_configs,
    schedule_of,
    schedules_of,
)
from attnforge.codegen.schedules.base import Config, Constraint, Limits, Schedule, ScheduleDefinition, fields_of
from attnforge.codegen.schedules.hopper import HopperBackwardConfig, HopperForwardConfig
from attnforge.codegen.schedules.portable import PortableBackwardConfig, PortableForwardConfig
from attnforge.codegen.spec import SUPPORTED_HEAD_DIMS, AttentionSpec, DType, Pass
from attnforge.codegen.variant import Variant

__all__ = [
    "SUPPORTED_HEAD_DIMS",
    "AttentionSpec",
    "Chunk",
    "CodegenError",
    "Config",
    "ConfigError",
    "Constraint",
    "DType",
    "HeadDimSplit",
    "HopperBackwardConfig",
    "HopperForwardConfig",
    "Limits",
    "Pass",
    "PortableBackwardConfig",
    "PortableForwardConfig",
    "Schedule",
    "ScheduleDefinition",
    "SpecError",
    "TemplateSet",
    "Variant",
    "config_type",
    "default_config",
    "default_configs",
    "fields_of",
    "render",
    "schedule_of",
    "schedules_of",
]

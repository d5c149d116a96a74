import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attnforge.codegen import (
    AttentionSpec,
    ConfigError,
    DType,
    HeadDimSplit,
    Limits,
    Pass,
    PortableBackwardConfig,
    PortableForwardConfig,
    Schedule,
    Variant,
    config_type,
    default_config,
    fields_of,
    schedule_of,
)
from tests.codegen.strategies import backward_configs, dtypes, forward_configs, limits, specs, variants

FORWARD = PortableForwardConfig(block_m=128, block_n=64, num_warps=8, num_stages=3, head_dim_split=HeadDimSplit.CHUNKS)
SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("block_m", value) for value in (0, 8, 48, 512, -64, 64.0, "64", True, None)),
        *(("block_n", value) for value in (8, 100, "64; import os")),
        *(("num_warps", value) for value in (0, 3, 32, 4.0)),
        *(("num_stages", value) for value in (0, 7, 2.0, True)),
        *(("head_dim_split", value) for value in ("chunks", "both", None, 1)),
    ],
)
def test_an_unsupported_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as refusal:
        replace(FORWARD, **{field: value})  # type: ignore[arg-type]
    assert refusal.value.field == field
    assert repr(value) in str(refusal.value)


@given(backward_configs, st.sampled_from(sorted(PortableBackwardConfig.__dataclass_fields__)))
def test_every_field_of_the_backward_is_checked(config: PortableBackwardConfig, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(config, **{field: "64"})  # type: ignore[arg-type]


@given(st.one_of(st.tuples(forward_configs, forward_configs), st.tuples(backward_configs, backward_configs)))
def test_configs_share_a_name_only_when_they_are_equal(pair: tuple) -> None:
    first, second = pair
    assert (first.name == second.name) is (first == second)


@given(backward_configs, st.data())
def test_every_field_shows_in_the_name(config: PortableBackwardConfig, data: st.DataObject) -> None:
    other = data.draw(backward_configs)
    for field, value in fields_of(other).items():
        changed = replace(config, **{field: value})
        assert (changed.name == config.name) is (changed == config)


@given(variants())
def test_paths_are_safe_and_tell_the_variant(variant: Variant) -> None:
    assert re.fullmatch(r"portable/[a-z0-9_]+/[a-z0-9_]+\.py", variant.path)
    assert len(variant.path.rsplit("/", 1)[1]) < 200
    assert variant.spec.name in variant.path
    assert variant.config.name in variant.path


def test_a_config_of_the_other_pass_makes_no_variant() -> None:
    backward = replace(SPEC, pass_=Pass.BACKWARD)
    with pytest.raises(ConfigError, match="PortableBackwardConfig"):
        Variant(backward, Schedule.PORTABLE, FORWARD)


def test_config_types_by_pass() -> None:
    assert config_type(Schedule.PORTABLE, Pass.FORWARD) is PortableForwardConfig
    assert config_type(Schedule.PORTABLE, Pass.BACKWARD) is PortableBackwardConfig


@given(specs, dtypes, limits)
def test_defaults_violate_no_constraint(spec: AttentionSpec, dtype: DType, target: Limits) -> None:
    assume(target.arch != "gfx942")  # in its 64 KB there is not always room; the last resort serves
    schedule, config = default_config(spec, dtype, target)
    assert schedule_of(schedule, spec.pass_).violations(spec, config, dtype, target) == []


@given(specs, dtypes, limits, st.booleans())
def test_the_space_is_made_of_valid_configs(spec: AttentionSpec, dtype: DType, target: Limits, quick: bool) -> None:
    definition = schedule_of(Schedule.PORTABLE, spec.pass_)
    space = definition.space(spec, dtype, target, quick)
    assert list(space) == list(definition.config_type.__dataclass_fields__)
    for choose in (min, max):
        definition.config_type(**{field: choose(choices) for field, choices in space.items()})


@given(specs, dtypes, limits)
def test_the_quick_space_is_part_of_the_whole(spec: AttentionSpec, dtype: DType, target: Limits) -> None:
    definition = schedule_of(Schedule.PORTABLE, spec.pass_)
    quick, whole = (definition.space(spec, dtype, target, flag) for flag in (True, False))
    assert all(set(quick[field]) <= set(whole[field]) for field in whole)


@given(specs)
def test_every_field_of_a_config_shapes_a_kernel_or_all_of_them(spec: AttentionSpec) -> None:
    definition = schedule_of(Schedule.PORTABLE, spec.pass_)
    shaped = [field for fields in definition.kernels.values() for field in fields]
    assert len(shaped) == len(set(shaped))
    assert set(definition.config_type.__dataclass_fields__) - set(shaped) == {"head_dim_split"}


def test_constraints_say_why() -> None:
    huge = replace(FORWARD, block_m=256, block_n=256, num_warps=4, num_stages=6)
    reasons = schedule_of(Schedule.PORTABLE, Pass.FORWARD).violations(SPEC, huge, DType.BF16, Limits("sm_86", 101376))
    assert any("shared memory" in reason and "sm_86 has 101376" in reason for reason in reasons)
    assert any("registers" in reason for reason in reasons)

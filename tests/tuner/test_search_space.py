from collections.abc import Callable

import pytest

from attnforge.codegen import AttentionSpec, Config, Constraint, DType, Limits, Pass, fields_of
from attnforge.codegen.schedules import schedule_of
from attnforge.codegen.schedules.base import Schedule
from attnforge.tuner.recombination import recombined
from attnforge.tuner.search_space import SearchSpace, values_of

SM_90 = Limits("sm_90", 232448)


def space_of(pass_: Pass, head_dim: int = 64, limits: Limits = SM_90) -> SearchSpace:
    spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=False)
    return SearchSpace(spec, schedule_of(Schedule.PORTABLE, pass_), DType.BF16, limits)


@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_it_holds_what_no_constraint_excludes_and_counts_the_rest(pass_: Pass, head_dim: int) -> None:
    space = space_of(pass_, head_dim)
    candidates = 1
    for choices in space.choices.values():
        candidates *= len(choices)
    assert len(set(space.configs)) == len(space.configs) > 5
    assert len(space.configs) + sum(space.excluded.values()) == candidates
    assert all(space.admits(config) for config in space.configs)
    assert set(space.excluded) <= {constraint.name for constraint in space.definition.constraints}


def test_less_shared_memory_leaves_fewer_configs() -> None:
    small = space_of(Pass.FORWARD, 128, Limits("sm_90", 101376))
    assert 0 < len(small.configs) < len(space_of(Pass.FORWARD, 128).configs)
    assert small.excluded["shared memory"] > 0


@pytest.mark.parametrize("pass_", list(Pass))
def test_a_field_belongs_to_one_kernel_or_to_all(pass_: Pass) -> None:
    space = space_of(pass_, 80)
    of_kernels = [field for fields in space.kernels.values() for field in fields]
    assert sorted([*of_kernels, *space.shared_fields]) == sorted(space.choices)


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 112, 128, 160, 192, 256])
@pytest.mark.parametrize("pass_", list(Pass))
def test_where_it_starts_is_admitted(pass_: Pass, head_dim: int) -> None:
    space = space_of(pass_, head_dim)
    assert space.violated(space.default) == []


def times_of(space: SearchSpace, ms: Callable[[str, Config], float]) -> dict[Config, dict[str, float]]:
    return {config: {kernel: ms(kernel, config) for kernel in space.kernels} for config in space.configs}


def test_the_best_parts_are_put_together() -> None:
    space = space_of(Pass.BACKWARD, 80)
    configs = space.configs
    left = configs[0]
    right = next(
        config
        for config in configs
        if not any(values_of(config, f) == values_of(left, f) for f in space.kernels.values())
        and values_of(config, space.shared_fields) == values_of(left, space.shared_fields)
    )
    together = recombined(space, {left: {"dkdv": 1.0, "dq": 9.0}, right: {"dkdv": 5.0, "dq": 2.0}})
    assert together is not None
    assert values_of(together, space.kernels["dkdv"]) == values_of(left, space.kernels["dkdv"])
    assert values_of(together, space.kernels["dq"]) == values_of(right, space.kernels["dq"])
    assert values_of(together, space.shared_fields) == values_of(left, space.shared_fields)


def test_parts_with_different_shared_fields_are_not_mixed() -> None:
    space = space_of(Pass.BACKWARD, 80)
    chunks = next(c for c in space.configs if fields_of(c)["head_dim_split"] == "chunks")
    padded = next(c for c in space.configs if fields_of(c)["head_dim_split"] == "padded")
    times = {chunks: {"dkdv": 1.0, "dq": 9.0}, padded: {"dkdv": 9.0, "dq": 0.5}}
    assert recombined(space, times) == padded


def test_a_kernel_without_a_time_is_not_used() -> None:
    space = space_of(Pass.BACKWARD)
    only = space.configs[0]
    assert recombined(space, {only: {"dkdv": 1.0}}) is None
    assert recombined(space, {}) is None


def test_a_whole_that_a_constraint_excludes_is_not_proposed() -> None:
    space = space_of(Pass.BACKWARD)
    left, right = space.configs[0], space.configs[-1]
    times = {left: {"dkdv": 1.0, "dq": 9.0}, right: {"dkdv": 9.0, "dq": 1.0}}
    allowed = recombined(space, times)
    assert allowed not in (None, left, right)

    def forbid_mixing(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
        return None if config in (left, right) else "mixed"

    from dataclasses import replace

    strict = replace(space, definition=replace(space.definition, constraints=(Constraint("mix", forbid_mixing),)))
    assert recombined(strict, times) is None

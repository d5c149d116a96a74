import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnforge.codegen import (
    AttentionSpec,
    ConfigError,
    DType,
    HopperBackwardConfig,
    Limits,
    Pass,
    Schedule,
    Variant,
    render,
    schedule_of,
)
from attnforge.codegen.schedules.hopper.backward_chunks import PADDED_BEYOND, dq_chunks, shares
from tests.codegen.hopper_backward_runs import CONFIG, HOPPER, SM_90, WIDE_CONFIG, a_default, a_spec

HEAD_DIMS = range(24, 129, 8)
WIDE_HEAD_DIMS = range(136, 257, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_m", 32), ("block_m", 256), ("stages", 1), ("stages", 5), ("ping_pong", 1), ("kv_in_registers", None),
     ("ordered", "yes")],
)  # fmt: skip
def test_a_config_refuses_what_no_kernel_has(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(CONFIG, **{field: value})  # type: ignore[arg-type]


def test_names_tell_configs_apart() -> None:
    choices: dict[str, Any] = {**HOPPER.space(a_spec(80), DType.BF16, SM_90, False), "ordered": (False, True)}
    configs = [replace(CONFIG, **{field: value}) for field, values in choices.items() for value in values]
    assert len({config.name for config in configs}) == len(set(configs))
    assert CONFIG.name == "m64_s2_pingpong"
    assert replace(WIDE_CONFIG, ordered=True).name == "m64_s2_ordered"


def test_the_tuner_never_asks_for_an_order() -> None:
    for quick in (False, True):
        assert HOPPER.space(a_spec(80), DType.BF16, SM_90, quick)["ordered"] == (False,)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("block_m", [64, 128])
def test_warpgroups_share_dq_and_cover_the_head_dim(head_dim: int, block_m: int) -> None:
    own = dq_chunks(head_dim, block_m)
    every = sorted({chunk for chunks in own for chunk in chunks}, key=lambda chunk: chunk.offset)
    assert all(own)
    assert [chunk.offset for chunk in every] == [sum(each.width for each in every[:i]) for i in range(len(every))]
    padding = sum(chunk.width for chunk in every) - head_dim
    assert 0 <= padding < 16 or block_m == 128 or (head_dim > PADDED_BEYOND and padding == 128 - head_dim)
    assert [chunk.suffix for chunk in every] == [str(index) for index in range(len(every))]
    assert all(
        chunk.offset % chunk.width == 0 and chunk.masked == (chunk.offset + chunk.width > head_dim) for chunk in every
    )


@pytest.mark.parametrize("head_dim", WIDE_HEAD_DIMS)
def test_wide_warpgroups_share_every_column_once(head_dim: int) -> None:
    every = sorted((chunk for chunks in shares(head_dim) for chunk in chunks), key=lambda chunk: chunk.offset)
    assert [chunk.offset for chunk in every] == [sum(each.width for each in every[:i]) for i in range(len(every))]
    assert sum(chunk.width for chunk in every) >= head_dim
    assert [chunk.masked for chunk in every] == [chunk.offset + chunk.width > head_dim for chunk in every]
    assert all(len(chunks) in (1, 2) and sum(chunk.width for chunk in chunks) <= 128 for chunks in shares(head_dim))


def test_columns_are_shared_as_evenly_as_chunks_allow() -> None:
    widths = {d: [[chunk.width for chunk in chunks] for chunks in dq_chunks(d, 64)] for d in (64, 80, 96, 128)}
    assert widths == {64: [[32], [32]], 80: [[32, 16], [32]], 96: [[64], [32]], 128: [[64], [64]]}
    wide = {d: [[chunk.width for chunk in chunks] for chunks in shares(d)] for d in (160, 192, 256)}
    assert wide == {160: [[64, 16], [64, 16]], 192: [[64, 32], [64, 32]], 256: [[128], [128]]}


@pytest.mark.parametrize(
    ("spec", "limits", "words"),
    [
        (a_spec(128), Limits("sm_100", 232448), "sm_90"),
        (a_spec(16), SM_90, "too few"),
    ],
)
def test_it_says_what_it_cannot_do(spec: AttentionSpec, limits: Limits, words: str) -> None:
    assert words in (HOPPER.supports(spec, limits) or "")


@pytest.mark.parametrize("head_dim", [*HEAD_DIMS, *WIDE_HEAD_DIMS])
@pytest.mark.parametrize("head_dim_v", [None, 64])
def test_where_it_starts_breaks_no_constraint(head_dim: int, head_dim_v: int | None) -> None:
    spec = a_spec(head_dim, head_dim_v=head_dim_v)
    assert HOPPER.supports(spec, SM_90) is None
    for dtype in (DType.FP16, DType.BF16):
        variant = Variant(spec, Schedule.HOPPER, HOPPER.default(spec, dtype, SM_90))
        for each in (variant, variant.deterministic):
            assert HOPPER.violations(spec, each.config, dtype, SM_90) == []


@pytest.mark.parametrize(
    ("config", "changed", "head_dim", "dtype", "reason"),
    [
        (CONFIG, {}, 128, DType.FP32, "fp16 and bf16 only"),
        (CONFIG, {"stages": 4}, 128, DType.BF16, "bytes of shared memory"),
        (CONFIG, {"kv_in_registers": True}, 128, DType.BF16, "registers a thread"),
        (CONFIG, {"block_m": 128}, 80, DType.BF16, "of 128 queries"),
        (WIDE_CONFIG, {"block_m": 128}, 192, DType.BF16, "blocks of 64 queries"),
        (WIDE_CONFIG, {"ping_pong": True}, 192, DType.BF16, "take no turns"),
        (WIDE_CONFIG, {"kv_in_registers": True}, 192, DType.BF16, "no registers for K and V"),
        (WIDE_CONFIG, {"stages": 4}, 256, DType.BF16, "bytes of shared memory"),
    ],
)
def test_constraints_give_their_reasons(
    config: HopperBackwardConfig, changed: dict[str, Any], head_dim: int, dtype: DType, reason: str
) -> None:
    spec = a_spec(head_dim)
    assert HOPPER.violations(spec, config, DType.BF16, SM_90) == []
    assert any(reason in each for each in HOPPER.violations(spec, replace(config, **changed), dtype, SM_90))


def test_it_repeats_to_the_bit_where_it_is_ordered() -> None:
    variant = a_default(a_spec(128))
    assert not variant.is_deterministic
    assert variant.deterministic.is_deterministic
    assert variant.deterministic == replace(variant, config=replace(variant.config, ordered=True))
    assert variant.deterministic.deterministic == variant.deterministic


def test_what_repeats_already_is_its_own_deterministic_twin() -> None:
    spec = a_spec(128)
    forward = AttentionSpec(pass_=Pass.FORWARD, head_dim=128, head_dim_v=128, causal=False)
    of_forward = schedule_of(Schedule.HOPPER, Pass.FORWARD).default(forward, DType.BF16, SM_90)
    of_portable = schedule_of(Schedule.PORTABLE, Pass.BACKWARD).default(spec, DType.BF16, SM_90)
    for variant in (Variant(forward, Schedule.HOPPER, of_forward), Variant(spec, Schedule.PORTABLE, of_portable)):
        assert variant.is_deterministic
        assert variant.deterministic == variant


@pytest.mark.parametrize("causal", [False, True])
def test_rendered_modules_stand_alone_and_are_formatted(causal: bool, tmp_path: Path) -> None:
    cases: list[tuple[int, dict[str, Any]]] = [
        (64, {}), (64, {"block_m": 128, "ping_pong": False}), (80, {"kv_in_registers": True, "ordered": True}),
        (112, {"stages": 3, "ping_pong": False, "ordered": True}), (128, {}), (24, {"block_m": 128, "ordered": True}),
        (160, {}), (192, {"ordered": True}), (256, {}), (136, {"stages": 3, "ordered": True}),
    ]  # fmt: skip
    for number, (head_dim, changed) in enumerate(cases):
        config = replace(WIDE_CONFIG if head_dim > 128 else CONFIG, **changed)
        variant = Variant(a_spec(head_dim, causal), Schedule.HOPPER, config)
        text = render(variant)
        assert text == render(variant)
        (tmp_path / f"module{number}.py").write_text(text)
        imported = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        assert all(name.split(".")[0] == "triton" for name in imported)
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--no-cache", "--line-length", "120", str(tmp_path)]
    for command in (["check", "--select", "E,F,W,I"], ["format", "--diff"]):
        done = subprocess.run([*ruff, *command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-6000:]

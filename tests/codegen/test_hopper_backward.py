import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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
    default_config,
    render,
    schedule_of,
)
from attnforge.codegen.schedules.hopper.backward_chunks import dq_chunks
from attnforge.codegen.schedules.hopper.backward_config import DqOrder

SM_90 = Limits("sm_90", 232448)
HOPPER = schedule_of(Schedule.HOPPER, Pass.BACKWARD)
CONFIG = HopperBackwardConfig(
    block_m=64, stages=2, dq_order=DqOrder.SAME_STEP, stats_by_tma=True, k_in_registers=False, v_in_registers=False,
    early_dv=False, anchor=True,
)  # fmt: skip
HEAD_DIMS = range(24, 129, 8)


def a_spec(head_dim: int = 128, causal: bool = False, head_dim_v: int | None = None) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.BACKWARD, head_dim=head_dim, head_dim_v=head_dim_v or head_dim, causal=causal)


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_m", 32), ("block_m", 256), ("stages", 0), ("stages", 7), ("dq_order", "same"), ("stats_by_tma", 1),
     ("k_in_registers", 0), ("v_in_registers", None), ("early_dv", "yes"), ("anchor", 1)],
)  # fmt: skip
def test_a_config_refuses_what_no_kernel_has(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(CONFIG, **{field: value})  # type: ignore[arg-type]


def test_names_tell_configs_apart() -> None:
    choices = HOPPER.space(a_spec(80), DType.BF16, SM_90, False)
    configs = [replace(CONFIG, **{field: value}) for field, values in choices.items() for value in values]
    assert len({config.name for config in configs}) == len(set(configs))
    assert CONFIG.name == "m64_s2_same_stats_anchor"


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("block_m", [64, 128])
def test_warpgroups_share_dq_and_cover_the_head_dim(head_dim: int, block_m: int) -> None:
    own = dq_chunks(head_dim, block_m)
    every = sorted({chunk for chunks in own for chunk in chunks}, key=lambda chunk: chunk.offset)
    assert all(own)
    assert [chunk.offset for chunk in every] == [sum(each.width for each in every[:i]) for i in range(len(every))]
    assert 0 <= sum(chunk.width for chunk in every) - head_dim < 16 or block_m == 128
    assert [chunk.suffix for chunk in every] == [str(index) for index in range(len(every))]
    assert all(
        chunk.offset % chunk.width == 0 and chunk.masked == (chunk.offset + chunk.width > head_dim) for chunk in every
    )


def test_columns_are_shared_as_evenly_as_chunks_allow() -> None:
    widths = {d: [[chunk.width for chunk in chunks] for chunks in dq_chunks(d, 64)] for d in (64, 80, 96, 128)}
    assert widths == {64: [[32], [32]], 80: [[32, 16], [32]], 96: [[64], [32]], 128: [[64], [64]]}


@pytest.mark.parametrize(
    ("spec", "limits", "words"),
    [
        (a_spec(), Limits("sm_100", 232448), "sm_90"),
        (a_spec(136), SM_90, "up to 128"),
        (a_spec(128, head_dim_v=192), SM_90, "up to 128"),
        (a_spec(16), SM_90, "too few"),
    ],
)
def test_it_says_what_it_cannot_do(spec: AttentionSpec, limits: Limits, words: str) -> None:
    assert words in (HOPPER.supports(spec, limits) or "")


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("head_dim_v", [None, 64])
def test_where_it_starts_breaks_no_constraint(head_dim: int, head_dim_v: int | None) -> None:
    spec = a_spec(head_dim, head_dim_v=head_dim_v)
    assert HOPPER.supports(spec, SM_90) is None
    for dtype in (DType.FP16, DType.BF16):
        assert HOPPER.violations(spec, HOPPER.default(spec, dtype, SM_90), dtype, SM_90) == []


@pytest.mark.parametrize(
    ("changed", "head_dim", "dtype", "reason"),
    [
        ({}, 128, DType.FP32, "fp16 and bf16 only"),
        ({"stages": 4}, 128, DType.BF16, "bytes of shared memory"),
        ({"dq_order": DqOrder.NEXT_STEP}, 128, DType.BF16, "registers a thread"),
        ({"block_m": 128}, 80, DType.BF16, "of 128 queries"),
        ({"early_dv": True}, 128, DType.BF16, "an anchor already"),
        ({"early_dv": True, "dq_order": DqOrder.BEFORE_DP}, 128, DType.BF16, "want of registers"),
    ],
)
def test_constraints_give_their_reasons(changed: dict[str, int], head_dim: int, dtype: DType, reason: str) -> None:
    config = replace(CONFIG, **changed)  # type: ignore[arg-type]
    assert HOPPER.violations(a_spec(head_dim), CONFIG, DType.BF16, SM_90) == []
    assert any(reason in violation for violation in HOPPER.violations(a_spec(head_dim), config, dtype, SM_90))


def test_it_alone_does_not_repeat_to_the_bit() -> None:
    spec = a_spec()
    assert not Variant(spec, Schedule.HOPPER, CONFIG).is_deterministic
    assert Variant(spec, *default_config(spec, DType.BF16, SM_90)).is_deterministic
    forward = AttentionSpec(pass_=Pass.FORWARD, head_dim=128, head_dim_v=128, causal=False)
    of_forward = schedule_of(Schedule.HOPPER, Pass.FORWARD).default(forward, DType.BF16, SM_90)
    assert Variant(forward, Schedule.HOPPER, of_forward).is_deterministic


@pytest.mark.parametrize("causal", [False, True])
def test_rendered_modules_stand_alone_and_are_formatted(causal: bool, tmp_path: Path) -> None:
    registers = {"k_in_registers": True, "v_in_registers": True}
    for number, (head_dim, changed) in enumerate(
        [(64, {"dq_order": DqOrder.NEXT_STEP}), (64, {"block_m": 128, "early_dv": True, "anchor": False}),
         (80, {"dq_order": DqOrder.BEFORE_DP}), (112, {"stats_by_tma": False}), (120, registers), (128, {}),
         (48, {"dq_order": DqOrder.NEXT_STEP, "block_m": 128} | registers)]
    ):  # fmt: skip
        variant = Variant(a_spec(head_dim, causal), Schedule.HOPPER, replace(CONFIG, **changed))  # type: ignore[arg-type]
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

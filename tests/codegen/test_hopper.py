import ast
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from attnforge.codegen import (
    AttentionSpec,
    ConfigError,
    DType,
    HeadDimSplit,
    HopperForwardConfig,
    Limits,
    Pass,
    Schedule,
    Variant,
    default_config,
    default_configs,
    render,
    schedule_of,
)
from tests.codegen.strategies import LIMITS

SM_90 = Limits("sm_90", 232448)
HOPPER = schedule_of(Schedule.HOPPER, Pass.FORWARD)
CONFIG = HopperForwardConfig(
    warpgroups=2, block_n=128, stages=2, q_stages=1, ping_pong=True, overlap=True, anchor=True, persistent=False,
    heads_together=1, head_dim_split=HeadDimSplit.CHUNKS,
)  # fmt: skip
HEAD_DIMS = range(16, 257, 8)


def a_spec(head_dim: int = 128, causal: bool = False, head_dim_v: int | None = None) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim_v or head_dim, causal=causal)


@pytest.mark.parametrize(
    ("field", "value"),
    [("warpgroups", 1), ("warpgroups", 5), ("block_n", 96), ("block_n", 16), ("stages", 0), ("stages", 7),
     ("q_stages", 3), ("heads_together", 0),
     ("ping_pong", 1), ("overlap", 0), ("anchor", "yes"), ("persistent", None), ("head_dim_split", "chunks")],
)  # fmt: skip
def test_a_config_refuses_what_no_kernel_has(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(CONFIG, **{field: value})  # type: ignore[arg-type]


def test_names_tell_configs_apart() -> None:
    choices = HOPPER.space(a_spec(80), DType.BF16, SM_90, False)
    configs = [replace(CONFIG, **{field: value}) for field, values in choices.items() for value in values]
    assert len({config.name for config in configs}) == len(set(configs))
    assert CONFIG.name == "w2_n128_s2_q1_h1_pingpong_overlap_anchor_chunks"


def test_it_is_for_sm_90_and_equal_head_dims() -> None:
    assert HOPPER.supports(a_spec(), SM_90) is None
    assert "sm_90" in (HOPPER.supports(a_spec(), Limits("sm_100", 232448)) or "")
    assert "192 and 128" in (HOPPER.supports(a_spec(192, head_dim_v=128), SM_90) or "")


def test_it_is_sm_90s_default_where_it_was_measured_and_portable_comes_next() -> None:
    for head_dim in HEAD_DIMS:
        for causal, dtype, pass_ in product((False, True), (DType.FP16, DType.BF16), Pass):
            spec = replace(a_spec(head_dim, causal), pass_=pass_)
            found = [schedule for schedule, _ in default_configs(spec, dtype, SM_90)]
            assert found == [Schedule.HOPPER, Schedule.PORTABLE][head_dim < 64 :]
    for spec, dtype in ((a_spec(), DType.FP32), (a_spec(192, head_dim_v=128), DType.BF16)):
        assert default_config(spec, dtype, SM_90)[0] is Schedule.PORTABLE
    for limits in LIMITS:
        if limits.arch != "sm_90":
            assert default_config(a_spec(), DType.BF16, limits)[0] is Schedule.PORTABLE


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("causal", [False, True])
def test_where_it_starts_breaks_no_constraint(head_dim: int, causal: bool) -> None:
    spec = a_spec(head_dim, causal)
    for dtype in (DType.FP16, DType.BF16):
        assert HOPPER.violations(spec, HOPPER.default(spec, dtype, SM_90), dtype, SM_90) == []


@pytest.mark.parametrize(
    ("changed", "head_dim", "dtype", "reason"),
    [
        ({}, 128, DType.FP32, "fp16 and bf16 only"),
        ({"stages": 4}, 128, DType.BF16, "bytes of shared memory"),
        ({"warpgroups": 3}, 128, DType.BF16, "registers a thread"),
        ({"overlap": False}, 128, DType.BF16, "no overlap to anchor"),
        ({"q_stages": 2}, 128, DType.BF16, "persistent programs"),
        ({"heads_together": 8}, 128, DType.BF16, "in any order"),
    ],
)
def test_constraints_give_their_reasons(changed: dict[str, int], head_dim: int, dtype: DType, reason: str) -> None:
    assert HOPPER.violations(a_spec(head_dim), CONFIG, DType.BF16, SM_90) == []
    config = replace(CONFIG, **changed)  # type: ignore[arg-type]
    assert any(reason in violation for violation in HOPPER.violations(a_spec(head_dim), config, dtype, SM_90))


@pytest.mark.parametrize("causal", [False, True])
def test_rendered_modules_stand_alone_and_are_formatted(causal: bool, tmp_path: Path) -> None:
    for number, (head_dim, changed) in enumerate(
        [(64, {"warpgroups": 3, "block_n": 64}), (112, {}), (128, {"persistent": True, "q_stages": 2}),
         (160, {"ping_pong": False}), (64, {"heads_together": 8}), (64, {"heads_together": 8, "persistent": True}),
         (80, {"overlap": False, "anchor": False}), (72, {"head_dim_split": HeadDimSplit.PADDED}), (256, {})]
    ):  # fmt: skip
        text = render(Variant(a_spec(head_dim, causal), Schedule.HOPPER, replace(CONFIG, **changed)))  # type: ignore[arg-type]
        assert text == render(Variant(a_spec(head_dim, causal), Schedule.HOPPER, replace(CONFIG, **changed)))  # type: ignore[arg-type]
        (tmp_path / f"module{number}.py").write_text(text)
        imported = [node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        assert all(name.split(".")[0] == "triton" for name in imported)
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--no-cache", "--line-length", "120", str(tmp_path)]
    for command in (["format", "--check"], ["check", "--select", "E,F,W,I"]):
        done = subprocess.run([*ruff, *command, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]

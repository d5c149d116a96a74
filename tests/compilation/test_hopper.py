"""The hopper schedule, compiled for sm_90: what ptxas says of it. Needs no GPU."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton

from attnforge.codegen import AttentionSpec, DType, HeadDimSplit, Pass, Schedule, Variant, schedule_of
from attnforge.compilation import CompileReport, compile_variant
from attnforge.compilation.offline_driver import compiling_for
from attnforge.compilation.representative import representative_plan
from attnforge.kernels import load
from attnforge.problem import Problem
from attnforge.target import Target

SM_90 = Target.for_arch("sm_90")
HOPPER = schedule_of(Schedule.HOPPER, Pass.FORWARD)


@pytest.fixture(autouse=True)
def triton_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def a_variant(head_dim: int, causal: bool, **changed: object) -> Variant:
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
    config = replace(HOPPER.default(spec, DType.BF16, SM_90.limits), **changed)  # type: ignore[type-var]
    return Variant(spec, Schedule.HOPPER, config)


def a_problem(seqlen: int, dtype: DType = DType.BF16) -> Problem:
    return Problem(batch=2, heads=8, kv_heads=2, seqlen_q=seqlen, seqlen_k=seqlen, dtype=dtype)


def check(variant: Variant, problem: Problem, spills: int = 0) -> None:
    report = compile_variant(variant, problem, SM_90)
    assert isinstance(report, CompileReport), report
    assert report.serialised == ()
    assert report.spill_bytes <= spills
    estimate = HOPPER.shared_memory_estimate(variant.spec, variant.config, problem.dtype, SM_90.limits)
    (kernel,) = report.kernels
    assert estimate - 1024 < kernel.shared_bytes <= estimate


SPILLS = {64: 20, 160: 200, 192: 64, 256: 48}
"""Bytes by head dim that Triton 3.9's ptxas spills outside of the innermost loops; that of 3.6 none."""


@pytest.mark.slow
@pytest.mark.parametrize("seqlen", [1000, 1024])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 160, 192, 256])
def test_defaults_compile_without_spills_or_serialised_wgmma(head_dim: int, causal: bool, seqlen: int) -> None:
    check(
        a_variant(head_dim, causal),
        a_problem(seqlen),
        0 if triton.__version__.startswith("3.6.") else SPILLS.get(head_dim, 0),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_dim", "dtype", "changed"),
    [
        (128, DType.FP16, {}),
        (128, DType.BF16, {"persistent": False, "q_stages": 1, "anchor": True}),
        (64, DType.BF16, {"heads_together": 32, "warpgroups": 4, "block_n": 64}),
        (80, DType.BF16, {"overlap": False, "q_stages": 1, "ping_pong": False, "warpgroups": 2}),
        (112, DType.BF16, {"head_dim_split": HeadDimSplit.CHUNKS, "block_n": 64}),
    ],
)
def test_other_configs_compile(head_dim: int, dtype: DType, changed: dict[str, object]) -> None:
    check(a_variant(head_dim, causal=True, **changed), a_problem(1024, dtype))


def test_the_gate_sees_serialised_wgmma() -> None:
    """Three warpgroups have too few registers for blocks of 128 keys here: what the constraint excludes."""
    variant = a_variant(128, causal=True, warpgroups=3, block_n=128)
    assert HOPPER.violations(variant.spec, variant.config, DType.BF16, SM_90.limits)
    report = compile_variant(variant, a_problem(1024), SM_90)
    assert isinstance(report, CompileReport)
    assert report.serialised
    assert report.spill_bytes > 0


def test_tritons_own_named_barriers_are_not_ours() -> None:
    variant = a_variant(64, causal=True, warpgroups=3, block_n=64)
    module = load(variant)
    with compiling_for(SM_90.triton_target()):
        ((kernel, grid, tensors, scalars, options),) = representative_plan(module, variant.spec, a_problem(1024))
        ptx = kernel.warmup(*tensors, *scalars, grid=grid, **options).asm["ptx"]
    barriers = {(int(number), int(threads)) for number, threads in re.findall(r"bar\w*\.\w+\s+(\d+), (\d+);", ptx)}
    assert {number for number, threads in barriers if threads == 256} == {8, 9, 10}
    assert all(number < 8 for number, threads in barriers if threads != 256)


@pytest.mark.parametrize(
    ("name", "index", "tensor", "words"),
    [
        ("q", 0, torch.empty(1, 2, 64, 64), "float16 and bfloat16"),
        ("k", 1, torch.empty(1, 2, 64, 68).bfloat16()[..., :64], "multiples of 8"),
        ("v", 2, torch.empty(1, 2, 1, 64).bfloat16().expand(-1, -1, 64, -1), "no expanded rows"),
        ("v", 2, torch.empty(1, 2, 64, 64).bfloat16().transpose(2, 3), "contiguous last dim"),
        ("out", 3, torch.empty(2 * 64 * 64 + 8).bfloat16()[1:-7].view(1, 2, 64, 64), "address"),
    ],
)
def test_plan_says_what_tma_cannot_address(name: str, index: int, tensor: torch.Tensor, words: str) -> None:
    tensors = [torch.empty(1, 2, 64, 64, dtype=torch.bfloat16) for _ in range(4)]
    plan = load(a_variant(64, causal=False)).plan
    plan(*tensors, torch.empty(1, 2, 64), 0.125)
    tensors[index] = tensor
    with pytest.raises(ValueError, match=f"^{name}.*{words}"):
        plan(*tensors, torch.empty(1, 2, 64), 0.125)

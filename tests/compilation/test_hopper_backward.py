"""The hopper schedule's backward, compiled for sm_90: what ptxas says of it. Needs no GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, schedule_of
from attnforge.codegen.schedules.hopper.backward_config import DqOrder
from attnforge.compilation import CompileReport, compile_variant
from attnforge.kernels import load
from attnforge.problem import Problem
from attnforge.target import Target

SM_90 = Target.for_arch("sm_90")
HOPPER = schedule_of(Schedule.HOPPER, Pass.BACKWARD)


@pytest.fixture(autouse=True)
def triton_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def a_variant(head_dim: int, causal: bool, **changed: object) -> Variant:
    spec = AttentionSpec(pass_=Pass.BACKWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
    config = replace(HOPPER.default(spec, DType.BF16, SM_90.limits), **changed)  # type: ignore[type-var]
    return Variant(spec, Schedule.HOPPER, config)


def a_problem(seqlen: int = 1024, heads: int = 8, dtype: DType = DType.BF16) -> Problem:
    return Problem(batch=2, heads=heads, kv_heads=2, seqlen_q=seqlen, seqlen_k=seqlen, dtype=dtype)


def check(variant: Variant, problem: Problem, spills: int = 0) -> None:
    report = compile_variant(variant, problem, SM_90)
    assert isinstance(report, CompileReport), report
    assert report.serialised == ()
    assert report.spill_bytes <= spills
    estimate = HOPPER.shared_memory_estimate(variant.spec, variant.config, problem.dtype, SM_90.limits)
    gradients = next(kernel for kernel in report.kernels if kernel.name == "gradients_kernel")
    assert estimate - 512 < gradients.shared_bytes <= estimate


@pytest.mark.slow
@pytest.mark.parametrize(("seqlen", "heads"), [(1000, 8), (1024, 2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [24, 64, 80, 96, 112, 128])
def test_defaults_compile_without_serialised_wgmma(head_dim: int, causal: bool, seqlen: int, heads: int) -> None:
    # Mostly scalars that are set aside before the loop for behind it. Causal blocks of 128 queries spill the most.
    spills = 192 if head_dim in (64, 112) else 64
    check(a_variant(head_dim, causal), a_problem(seqlen, heads), spills)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_dim", "changed"),
    [
        (128, {"early_dv": False, "anchor": True}),
        (128, {"stages": 3}),
        (64, {"block_m": 128, "dq_order": DqOrder.SAME_STEP, "early_dv": False, "anchor": True}),
        (64, {"block_m": 64}),
        (64, {"block_m": 64, "stats_by_tma": False, "dq_order": DqOrder.SAME_STEP}),
        (64, {"block_m": 64, "v_in_registers": True, "k_in_registers": True}),
    ],
)
def test_other_configs_compile(head_dim: int, changed: dict[str, object]) -> None:
    check(a_variant(head_dim, causal=False, **changed), a_problem(heads=2, dtype=DType.FP16), spills=64)


def test_the_gate_sees_serialised_wgmma() -> None:
    """dq of head dim 128 has no room beside scores and dp: what the constraint excludes."""
    variant = a_variant(128, causal=True, dq_order=DqOrder.NEXT_STEP)
    assert HOPPER.violations(variant.spec, variant.config, DType.BF16, SM_90.limits)
    report = compile_variant(variant, a_problem(), SM_90)
    assert isinstance(report, CompileReport)
    assert report.serialised
    assert report.spill_bytes > 0


@pytest.mark.parametrize(
    ("name", "index", "tensor", "words"),
    [
        ("dout", 0, torch.empty(1, 2, 1, 64).bfloat16().expand(-1, -1, 64, -1), "no expanded rows"),
        ("q", 1, torch.empty(1, 2, 64, 64), "float16 and bfloat16"),
        ("k", 2, torch.empty(1, 2, 64, 68).bfloat16()[..., :64], "multiples of 8"),
        ("dk", 7, torch.empty(2 * 64 * 64 + 8).bfloat16()[1:-7].view(1, 2, 64, 64), "address"),
    ],
)
def test_plan_says_what_tma_cannot_address(name: str, index: int, tensor: torch.Tensor, words: str) -> None:
    tensors = [torch.empty(1, 2, 64, 64, dtype=torch.bfloat16) for _ in range(9)]
    tensors[5] = torch.empty(1, 2, 64)
    module = load(a_variant(64, causal=False))
    workspace = torch.empty(module.workspace_shape(tensors[1]))
    module.plan(*tensors, workspace, 0.125)
    tensors[index] = tensor
    with pytest.raises(ValueError, match=f"^{name}.*{words}"):
        module.plan(*tensors, workspace, 0.125)


def test_the_workspace_holds_dq_in_fp32_and_two_numbers_a_query() -> None:
    q = torch.empty(2, 3, 100, 80, device="meta")
    module = load(a_variant(80, causal=False))
    rows, columns = module.workspace_shape(q)
    assert rows * columns == 2 * 3 * triton.cdiv(100, 64) * 64 * (80 + 2)

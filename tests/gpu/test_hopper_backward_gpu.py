"""The hopper schedule's backward on a GPU that it is for. Run it before anything of it is timed."""

from dataclasses import replace

import pytest
import torch

from attnforge import reference
from attnforge.codegen import AttentionSpec, DType, HopperBackwardConfig, Pass, Schedule, Variant, schedule_of
from attnforge.codegen.schedules.hopper.backward_config import DqOrder
from attnforge.dispatch.launch import Output, first_launch
from attnforge.kernels import load
from attnforge.target import Target
from attnforge.tuner.accuracy import gate

HOPPER = schedule_of(Schedule.HOPPER, Pass.BACKWARD)


@pytest.fixture(autouse=True)
def _on_hopper() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs sm_90")


pytestmark = pytest.mark.gpu


def a_variant(head_dim: int, causal: bool, **changed: object) -> Variant:
    spec = AttentionSpec(pass_=Pass.BACKWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
    config = HOPPER.default(spec, DType.BF16, Target.for_arch("sm_90").limits)
    assert isinstance(config, HopperBackwardConfig)
    return Variant(spec, Schedule.HOPPER, replace(config, **changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [24, 64, 72, 80, 96, 112, 128])
def test_defaults_pass_the_deep_gate(head_dim: int, causal: bool, dtype: DType) -> None:
    variant = a_variant(head_dim, causal)
    report = gate(load(variant), variant.spec, dtype, "cuda", deep=True, is_deterministic=variant.is_deterministic)
    assert report.ok, report.message


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "changed",
    [
        {"dq_order": DqOrder.SAME_STEP, "early_dv": False, "anchor": True},
        {"dq_order": DqOrder.BEFORE_DP, "early_dv": False, "anchor": True},
        {"dq_order": DqOrder.BEFORE_DP, "early_dv": False, "anchor": False},
        {"dq_order": DqOrder.SAME_STEP, "stages": 1, "stats_by_tma": False},
        {"dq_order": DqOrder.SAME_STEP, "block_m": 128, "early_dv": False, "anchor": True},
        {"k_in_registers": True, "v_in_registers": True},
    ],
)
def test_other_configs_pass_the_gate(head_dim: int, changed: dict[str, object], causal: bool) -> None:
    variant = a_variant(head_dim, causal, **changed)
    if HOPPER.violations(variant.spec, variant.config, DType.BF16, Target.for_arch("sm_90").limits):
        pytest.skip("a constraint excludes it")
    report = gate(load(variant), variant.spec, DType.BF16, "cuda")
    assert report.ok, report.message


def test_a_held_launch_serves_other_tensors() -> None:
    """A thousand launches, of which none hangs, and all stay as close as what the order of sums may move."""
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = ((2, 200, 8, 80), (2, 200, 8, 80), (2, 333, 2, 80), (2, 333, 2, 80))
    calls = []
    for _ in range(2):
        dout, q, k, v = (
            torch.randn(shape, generator=draw, device="cuda").bfloat16().transpose(1, 2) for shape in shapes
        )
        out, lse = reference.attention(q, k, v, causal=True, softmax_scale=0.1)
        calls.append((dout, q, k, v, out.bfloat16(), lse.float()))
    module = load(a_variant(80, causal=True))
    outputs = [*map(Output.like, calls[0][1:4]), Output.float32(*module.workspace_shape(calls[0][1]))]
    _, held = first_launch(module, calls[0], outputs, 0.1)
    for call in calls:
        expected = reference.attention_backward(*call[:4], causal=True, softmax_scale=0.1, out=call[4])
        gradients = held(*call)[:3]
        for got, want in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got.double(), want.double(), atol=3e-2, rtol=3e-2)
        for _ in range(1000):
            dq, dk, dv = held(*call)[:3]
            assert torch.equal(dk, gradients[1])
            assert torch.equal(dv, gradients[2])
            torch.testing.assert_close(dq, gradients[0], atol=1e-2, rtol=1e-2)

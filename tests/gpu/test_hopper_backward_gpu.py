"""The hopper schedule's backward on a GPU that it is for. Run it before anything of it is timed."""

from typing import Any

import pytest
import torch

from attnforge import reference
from attnforge.codegen import DType, Variant
from attnforge.dispatch.launch import Output, first_launch
from attnforge.kernels import load
from attnforge.tuner.accuracy import gate
from tests.codegen.hopper_backward_runs import HOPPER, SM_90, a_default, a_spec


@pytest.fixture(autouse=True)
def _on_hopper() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs sm_90")


pytestmark = pytest.mark.gpu


def a_variant(head_dim: int, causal: bool, **changed: Any) -> Variant:
    return a_default(a_spec(head_dim, causal), **changed)


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [24, 64, 72, 80, 96, 112, 128, 136, 160, 192, 256])
def test_defaults_pass_the_deep_gate(head_dim: int, causal: bool, dtype: DType) -> None:
    variant = a_variant(head_dim, causal)
    report = gate(load(variant), variant.spec, dtype, "cuda", deep=True, is_deterministic=variant.is_deterministic)
    assert report.ok, report.message


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_deterministic_twins_pass_the_deep_gate(head_dim: int, causal: bool) -> None:
    variant = a_variant(head_dim, causal).deterministic
    report = gate(load(variant), variant.spec, DType.BF16, "cuda", deep=True)
    assert report.ok, report.message


@pytest.mark.parametrize(
    ("head_dim", "changed"),
    [
        (64, {"ping_pong": True}),
        (64, {"block_m": 64, "stages": 4, "kv_in_registers": True}),
        (80, {"kv_in_registers": True, "stages": 3}),
        (128, {"ping_pong": False}),
        (192, {"stages": 2}),
    ],
)
def test_other_configs_pass_the_gate(head_dim: int, changed: dict[str, Any]) -> None:
    variant = a_variant(head_dim, causal=True, **changed)
    assert HOPPER.violations(variant.spec, variant.config, DType.BF16, SM_90) == []
    report = gate(load(variant), variant.spec, DType.BF16, "cuda")
    assert report.ok, report.message


@pytest.mark.parametrize(("batch", "seqlen"), [(4, 1000), (1, 4096)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_deterministic_twins_repeat_bitwise(head_dim: int, causal: bool, batch: int, seqlen: int) -> None:
    """A hundred launches, of which none hangs. Programs of one head run side by side, in another order each time."""
    draw = torch.Generator("cuda").manual_seed(0)
    dout, q, k, v = (
        torch.randn(batch, heads, seqlen, head_dim, generator=draw, device="cuda").bfloat16() for heads in (8, 8, 2, 2)
    )
    out, lse = reference.attention(q, k, v, causal=causal, softmax_scale=0.1)
    inputs = (dout, q, k, v, out.bfloat16(), lse.float())
    module = load(a_variant(head_dim, causal).deterministic)

    def gradients() -> list[torch.Tensor]:
        outputs = [torch.full_like(tensor, torch.nan) for tensor in (q, k, v)]
        module.launch(*inputs, *outputs, 0.1)
        return outputs

    first = gradients()
    assert all(tensor.isfinite().all() for tensor in first)
    for _ in range(99):
        assert all(torch.equal(got, want) for got, want in zip(gradients(), first, strict=True))


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

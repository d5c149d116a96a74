"""The hopper schedule on a GPU that it is for. Run it before anything of it is timed."""

from dataclasses import replace

import pytest
import torch

from attnforge import reference
from attnforge.codegen import (
    AttentionSpec,
    DType,
    HeadDimSplit,
    HopperForwardConfig,
    Pass,
    Schedule,
    Variant,
    schedule_of,
)
from attnforge.dispatch.launch import Output, first_launch
from attnforge.kernels import load
from attnforge.target import Target
from attnforge.tuner.accuracy import gate

HOPPER = schedule_of(Schedule.HOPPER, Pass.FORWARD)


@pytest.fixture(autouse=True)
def _on_hopper() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs sm_90")


pytestmark = pytest.mark.gpu


def a_variant(head_dim: int, causal: bool, **changed: object) -> Variant:
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
    config = HOPPER.default(spec, DType.BF16, Target.for_arch("sm_90").limits)
    assert isinstance(config, HopperForwardConfig)
    return Variant(spec, Schedule.HOPPER, replace(config, **changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 72, 80, 96, 112, 128, 160, 192, 256])
def test_defaults_pass_the_deep_gate(head_dim: int, causal: bool, dtype: DType) -> None:
    variant = a_variant(head_dim, causal)
    report = gate(load(variant), variant.spec, dtype, "cuda", deep=True)
    assert report.ok, report.message


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "changed",
    [
        {"anchor": True},
        {"heads_together": 8},
        {"persistent": False, "q_stages": 1, "heads_together": 8, "anchor": True},
        {"overlap": False, "q_stages": 1},
        {"persistent": False, "overlap": False, "q_stages": 1, "ping_pong": False},
        {"warpgroups": 4, "block_n": 64, "ping_pong": False},
        {"head_dim_split": HeadDimSplit.PADDED, "block_n": 64, "stages": 1},
    ],
)
def test_other_configs_pass_the_gate(changed: dict[str, object], causal: bool) -> None:
    if not causal:
        changed = {**changed, "heads_together": 1}
    variant = a_variant(80, causal, **{"warpgroups": 2, **changed})
    report = gate(load(variant), variant.spec, DType.BF16, "cuda")
    assert report.ok, report.message


def test_a_held_launch_serves_other_tensors_and_repeats_to_the_bit() -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = ((2, 200, 8, 80), (2, 333, 2, 80), (2, 333, 2, 80))
    calls = [
        tuple(torch.randn(shape, generator=draw, device="cuda").bfloat16().transpose(1, 2) for shape in shapes)
        for _ in range(2)
    ]
    outputs = [Output.like(calls[0][0]), Output.float32(2, 8, 200)]
    _, held = first_launch(load(a_variant(80, causal=True)), calls[0], outputs, 0.1)
    for call in calls:
        out, lse = held(*call)
        expected = reference.attention(*call, causal=True, softmax_scale=0.1)
        torch.testing.assert_close(out.double(), expected.out.double(), atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(lse.double(), expected.lse.double(), atol=1e-4, rtol=1e-4)
        for _ in range(1000):
            again = held(*call)
            assert torch.equal(again[0], out)
            assert torch.equal(again[1], lse)

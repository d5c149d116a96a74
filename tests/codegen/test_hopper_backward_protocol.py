"""The hopper backward's own text, run on the CPU: its barrier protocol, its masks and its tails."""

import contextlib
from dataclasses import replace
from itertools import product

import pytest
import torch

from attnforge import reference
from attnforge.codegen import AttentionSpec, DType, Limits, Pass, Schedule, Variant, render
from attnforge.codegen.schedules import schedule_of
from attnforge.codegen.schedules.hopper import HopperBackwardConfig
from attnforge.codegen.schedules.hopper.backward_config import DqOrder
from tests.codegen.gluon_pieces import ProtocolError
from tests.codegen.gluon_simulator import Machine

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")

SM_90 = Limits("sm_90", 232448)
SEQLENS = [(1, 1), (64, 128), (200, 300), (300, 65), (130, 1), (257, 400)]
"""(seqlen_q, seqlen_k): tails, one block, and causal rows that see no key."""


def a_spec(head_dim: int = 32, causal: bool = True) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.BACKWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)


def a_config(spec: AttentionSpec, **changed: object) -> HopperBackwardConfig:
    config = schedule_of(Schedule.HOPPER, Pass.BACKWARD).default(spec, DType.FP16, SM_90)
    assert isinstance(config, HopperBackwardConfig)
    return replace(config, **changed)  # type: ignore[arg-type]


def rendered(spec: AttentionSpec, config: HopperBackwardConfig) -> str:
    return render(Variant(spec, Schedule.HOPPER, config))


def run(
    text: str, spec: AttentionSpec, seqlens: tuple[int, int], heads: int = 2, kv_heads: int = 1, seed: int = 0,
    expanded: bool = False,
) -> float:  # fmt: skip
    """The largest error of dq, dk and dv, as a part of what is allowed; infinite where one of them is NaN."""
    torch.manual_seed(seed)
    seqlen_q, seqlen_k = seqlens
    q = torch.randn(2, heads, seqlen_q, spec.head_dim).half()
    k, v = torch.randn(2, 2, seqlen_k, kv_heads, spec.head_dim).half().transpose(2, 3)  # (B, S, H, D) in memory
    dout = torch.randn(2, seqlen_q, heads, spec.head_dim).half().transpose(1, 2)
    if expanded:
        q, k, v, dout = (
            q[:1].expand(2, -1, -1, -1),
            k[:, :1].expand(-1, kv_heads, -1, -1),
            v[:1, :1].expand(2, kv_heads, -1, -1),
            dout[:, :1].expand(-1, heads, -1, -1),
        )
    forward = reference.attention(q, k, v, causal=spec.causal, softmax_scale=0.3)
    out, lse = forward.out.half(), forward.lse.float()
    grads = [torch.full(tensor.shape, torch.nan).half() for tensor in (q, k, v)]
    machine = Machine(seed)
    module = machine.module(text)
    workspace = torch.full(module.workspace_shape(q), torch.nan)
    for kernel, grid, tensors, scalars, _ in module.plan(dout, q, k, v, out, lse, *grads, workspace, 0.3):
        machine.launch(kernel, grid[0], *tensors, *scalars)
    expected = reference.attention_backward(dout, q, k, v, causal=spec.causal, softmax_scale=0.3, out=out)
    errors = [(got - want).abs() / (4e-3 + 4e-3 * want.abs()) for got, want in zip(grads, expected, strict=True)]
    return max(float(error.nan_to_num(torch.inf).max()) for error in errors)


@pytest.mark.parametrize("seqlens", SEQLENS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", DqOrder)
def test_computes_the_gradients(seqlens: tuple[int, int], causal: bool, order: DqOrder) -> None:
    spec = a_spec(causal=causal)
    assert run(rendered(spec, a_config(spec, dq_order=order)), spec, seqlens) < 1

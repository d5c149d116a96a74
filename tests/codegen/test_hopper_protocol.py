"""The hopper forward's own text, run on the CPU: its barrier protocol, its masks and its tails."""

from dataclasses import replace

import pytest
import torch

from attnforge import reference
from attnforge.codegen import AttentionSpec, DType, HopperForwardConfig, Limits, Pass, Schedule, Variant, render
from attnforge.codegen.schedules import schedule_of
from tests.codegen.gluon_simulator import Machine, ProtocolError

SM_90 = Limits("sm_90", 232448)
SEQLENS = [(1, 1), (64, 128), (200, 300), (300, 65), (130, 1), (257, 400)]
"""(seqlen_q, seqlen_k): tails, one block, and causal rows that see no key."""


def a_spec(head_dim: int = 32, causal: bool = True) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)


def a_config(spec: AttentionSpec, **changed: object) -> HopperForwardConfig:
    config = schedule_of(Schedule.HOPPER, Pass.FORWARD).default(spec, DType.FP16, SM_90)
    assert isinstance(config, HopperForwardConfig)
    return replace(config, block_n=64, **changed)  # type: ignore[arg-type]


def run(
    text: str, spec: AttentionSpec, seqlens: tuple[int, int], programs: int | None = None, seed: int = 0, kv_heads: int = 1
) -> float:
    """The largest error of out and LSE, as a part of what is allowed; infinite when one of them is NaN."""
    torch.manual_seed(seed)
    heads, (seqlen_q, seqlen_k) = 2, seqlens
    q = torch.randn(1, heads, seqlen_q, spec.head_dim).half()
    k, v = torch.randn(2, 1, seqlen_k, kv_heads, spec.head_dim).half().transpose(2, 3)  # (B, S, H, D) in memory
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
    machine = Machine(seed)
    module = machine.module(text)
    ((kernel, grid, tensors, scalars, _),) = module.plan(q, k, v, out, lse, 0.3)
    machine.launch(kernel, programs or grid[0], *tensors, *scalars)
    expected = reference.attention(q, k, v, causal=spec.causal, softmax_scale=0.3)
    errors = ((out - expected.out).abs().max() / 4e-3, (lse.exp() / expected.lse.exp().clamp_min(1e-30) - 1).abs())
    blind = expected.lse.isneginf()
    assert bool((lse.isneginf() == blind).all())
    return float(torch.stack([errors[0], (errors[1][~blind].max() if (~blind).any() else errors[0]) / 1e-3]).nan_to_num(torch.inf).max())


@pytest.mark.parametrize("seqlens", SEQLENS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize(("warpgroups", "ping_pong", "overlap"), [(2, True, True), (3, True, True), (2, False, False)])
def test_computes_attention(
    seqlens: tuple[int, int], causal: bool, stages: int, warpgroups: int, ping_pong: bool, overlap: bool
) -> None:
    spec = a_spec(causal=causal)
    config = a_config(
        spec, stages=stages, warpgroups=warpgroups, ping_pong=ping_pong, overlap=overlap, anchor=overlap
    )
    assert run(render(Variant(spec, Schedule.HOPPER, config)), spec, seqlens) < 1

"""The rules of numerics.md on a GPU: modules of portable's default config, and attention() with whatever it picks.

    pytest tests/gpu/test_numerics_gpu.py -n 8

Nearly all of its time is compiling, about 200 kernels: workers do that side by side, each the kernels of its own rows.
A row holds everything that is compiled in (spec, dtype, split, group, row strides) and runs all its seqlens in turn.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import attnforge
from attnforge import reference
from attnforge.codegen import DType, Pass, Schedule, Variant, schedule_of
from attnforge.target import Target
from attnforge.tuner.accuracy import AccuracyReport, check, gate, launch_of, prepare
from attnforge.tuner.accuracy_inputs import Case, Family, Layout
from attnforge.tuner.accuracy_rules import FORWARD_FACTOR, LSE_ERROR, ROW_L2, largest_allowed_error
from tests.gpu.numerics_grid import GROUPS, ROWS, cases_of, name_of
from tests.numerics.rendered import load, spec_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

BF16, FP16 = DType.BF16, DType.FP16
SHIPPED = (32, 64, 80, 96, 112, 128, 160, 192, 256)


@pytest.fixture(autouse=True)
def device():
    torch.backends.cuda.matmul.allow_tf32 = False
    yield torch.device("cuda")
    torch.cuda.empty_cache()


def module_of(spec, dtype, split=None):
    """Portable's default config's, or one as much alike as the other split's wider tiles leave room for.

    Of hopper's see test_hopper_gpu.py.
    """
    limits, default = Target.current().limits, schedule_of(Schedule.PORTABLE, spec.pass_).default
    config = default(spec, dtype, limits)
    if split not in (None, config.head_dim_split):
        config = default(spec, dtype, replace(limits, shared_memory=limits.shared_memory // 2))
        config = replace(config, head_dim_split=split)
    return load(Variant(spec, Schedule.PORTABLE, config))


def assert_all_right(launch, cases, device, repeats=1):
    reports = [check(launch, prepare(case, device), repeats) for case in cases]
    failures = [report.message for report in reports if not report.ok]
    assert not failures, "\n".join(failures)
    assert AccuracyReport.merged(reports).findings


@pytest.mark.parametrize("pass_", Pass)
@pytest.mark.parametrize("index", range(len(ROWS)), ids=name_of)
def test_rendered_modules_meet_the_rules(index, pass_, device):
    head_dim, head_dim_v, split, causal, dtype = ROWS[index]
    spec = spec_of(pass_, head_dim, head_dim_v, causal=causal)
    assert_all_right(launch_of(module_of(spec, dtype, split)), cases_of(index, spec, dtype), device, repeats=2)


@pytest.mark.parametrize("pass_", Pass)
def test_the_deep_gate_accepts_the_default_config(pass_, device):
    spec = spec_of(pass_, 128, causal=True)
    report = gate(module_of(spec, BF16), spec, BF16, device, deep=True)
    assert report.ok, report.message


def through_attention(case):
    """attention() and its gradients as a launch: what they return is copied into the guarded outputs."""
    causal = case.spec.causal

    def forward(q, k, v, out, lse, softmax_scale):
        for target, result in zip(
            (out, lse),
            attnforge.attention(q, k, v, causal=causal, softmax_scale=softmax_scale, return_lse=True),
            strict=True,
        ):
            target.copy_(result)

    def backward(dout, q, k, v, out, lse, dq, dk, dv, softmax_scale):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        result = attnforge.attention(*leaves, causal=causal, softmax_scale=softmax_scale, deterministic=True)
        for target, gradient in zip((dq, dk, dv), torch.autograd.grad(result, leaves, dout), strict=True):
            target.copy_(gradient)

    return forward if case.spec.pass_ is Pass.FORWARD else backward


@pytest.mark.parametrize("pass_", Pass)
@pytest.mark.parametrize("head_dim", SHIPPED)
def test_attention_meets_the_rules(head_dim, pass_, device):
    index = SHIPPED.index(head_dim)
    spec = spec_of(pass_, head_dim, causal=index % 2 == 0)
    # The backward is given attention()'s own out. Where gradients are all cancellation, one bit of it shows.
    families = Family.of(spec) if pass_ is Pass.FORWARD else (Family.NORMAL, Family.ONE_HOT_VALUES)
    heads, kv_heads = GROUPS[index % len(GROUPS)]
    cases = [
        Case(
            spec=spec, dtype=(BF16, FP16)[index % 2], seqlen_q=seqlen_q, seqlen_k=seqlen_k, heads=heads,
            kv_heads=kv_heads, layout=list(Layout)[index % len(Layout)], families=families,
        )
        for seqlen_q, seqlen_k in ((1000, 1025), (1025, 129))
    ]  # fmt: skip
    for case in cases:
        assert_all_right(through_attention(case), [case], device)


@pytest.mark.parametrize("pass_", Pass)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_attention_meets_the_rules_at_4096(pass_, causal, device):
    spec = spec_of(pass_, 128, causal=causal)
    families = (Family.NORMAL, Family.ONE_HOT_VALUES)
    case = Case(spec=spec, dtype=BF16, seqlen_q=4096, seqlen_k=4096, heads=4, kv_heads=4, families=families)
    assert_all_right(through_attention(case), [case], device)


def normal(seed, *shape):
    draw = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=draw, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_fifty_launches_give_the_same_bits(head_dim, causal, device):
    leaves = [normal(i, 2, heads, 2048, head_dim).requires_grad_() for i, heads in enumerate((16, 8, 8))]
    dout = normal(3, 2, 16, 2048, head_dim)

    def run():
        out, lse = attnforge.attention(*leaves, causal=causal, deterministic=True, return_lse=True)
        return out.detach(), lse, *torch.autograd.grad(out, leaves, dout)

    first = run()
    assert all(x.isfinite().all() for x in first)
    for _ in range(49):
        assert all(map(torch.equal, first, run()))


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_what_must_hold_between_calls(causal, device):
    q, k, v = normal(0, 2, 8, 300, 64), normal(1, 2, 2, 401, 64), normal(2, 2, 2, 401, 64)
    out, lse = attnforge.attention(q, k, v, causal=causal, return_lse=True)
    repeated = attnforge.attention(q, *(x.repeat_interleave(4, 1) for x in (k, v)), causal=causal)
    torch.testing.assert_close(repeated, out, rtol=1e-2, atol=1e-3)
    constant = v[:, :, :1].expand_as(v)
    expected = constant[:, :, :1].repeat_interleave(4, 1).expand_as(out)
    torch.testing.assert_close(attnforge.attention(q, k, constant, causal=causal), expected, rtol=1e-2, atol=1e-3)
    if not causal:
        order = torch.randperm(401, device=device)
        permuted, permuted_lse = attnforge.attention(q, k[:, :, order], v[:, :, order], return_lse=True)
        torch.testing.assert_close(permuted, out, rtol=1e-2, atol=2e-3)
        torch.testing.assert_close(permuted_lse, lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["batch", "head", "row"])
def test_views_whose_offsets_pass_two_to_the_31(dim, device):
    """Each tensor lies in 4 GiB of its own, of which only its rows are touched."""
    shape = (2, 2, 65, 64)
    forward_module, backward_module = (module_of(spec_of(pass_, 64, causal=True), BF16) for pass_ in Pass)

    def far_apart(tensor):
        strides = [2 * 65 * 64, 65 * 64, 64]
        strides[dim] = 2**31 // (shape[dim] - 1) // 64 * 64 + 64
        size = sum((n - 1) * stride for n, stride in zip(shape, [*strides, 1], strict=True)) + 1
        return torch.empty(size, dtype=tensor.dtype, device=device).as_strided(shape, (*strides, 1)).copy_(tensor)

    def run(place):
        q, k, v, dout = (place(normal(seed, *shape)) for seed in range(4))
        out, lse = place(torch.zeros_like(q)), torch.empty(shape[:3], device=device)
        forward_module.launch(q, k, v, out, lse, 0.125)
        gradients = [place(torch.zeros_like(x)) for x in (q, k, v)]
        backward_module.launch(dout, q, k, v, out, lse, *gradients, 0.125)
        return [out.clone(), lse, *(x.clone() for x in gradients)]

    packed = run(torch.Tensor.contiguous)
    assert all(x.isfinite().all() for x in packed)
    assert all(map(torch.equal, run(far_apart), packed))


def test_tensors_of_more_than_two_to_the_31_elements(device):
    """The last head of 16 x 66 is right, forward and backward: its elements lie past 2^31."""
    shape = (16, 66, 16384, 128)
    leaves = [normal(seed, *shape).requires_grad_() for seed in range(3)]
    assert leaves[0].numel() > 2**31
    dout = normal(3, *shape)
    out, lse = attnforge.attention(*leaves, causal=True, return_lse=True)
    gradients = torch.autograd.grad(out, leaves, dout)
    last = [x.detach()[-1:, -1:] for x in (*leaves, dout, out, lse)]
    q, k, v, dout, out = last[:5]
    expected, expected_lse = reference.attention(q, k, v, causal=True)
    eager = reference.eager_lp(q, k, v, causal=True).out
    error = (out.double() - expected).abs()
    allowed = largest_allowed_error(expected, eager, FORWARD_FACTOR, torch.zeros_like(expected))
    assert error.max() <= allowed.max()
    assert (error.norm(dim=-1) <= ROW_L2[BF16] * expected.norm(dim=-1)).all()
    assert (last[5] - expected_lse).abs().max() <= LSE_ERROR
    expected_gradients = reference.attention_backward(dout, q, k, v, out=out, causal=True)
    for gradient, right in zip(gradients, expected_gradients, strict=True):
        assert (gradient[-1:, -1:].double() - right).norm() <= ROW_L2[BF16] * right.norm()

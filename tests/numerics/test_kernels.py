"""Rendered kernels in the interpreter: the corners of numerics.md's grid, small, and what must hold between launches.

bf16 is left to tests/gpu: the interpreter's bf16 dot multiplies raw bits.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnforge.codegen import DType, HeadDimSplit, Pass
from attnforge.tuner.accuracy import check, launch_of, prepare
from attnforge.tuner.accuracy_inputs import Case, Family, Layout, make_inputs
from tests.numerics.rendered import load, spec_of, variant_of

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

CPU = torch.device("cpu")
CHUNKS, PADDED = HeadDimSplit
FP16, FP32 = DType.FP16, DType.FP32
PACKED, BSHD, STRIDED, EXPANDED = Layout

# Each value meets the extremes of the others: head dims with one, two and padded chunks; tiles of both shapes; lengths
# of one, around the tiles' edges and far from them; all groups and layouts.
GRID = [
    # head dims, split, tiles, dtype, seqlen_q, seqlen_k, heads, kv_heads, layout
    (16, 16, CHUNKS, 16, 16, FP32, 1, 1, 1, 1, PACKED),
    (16, 256, CHUNKS, 32, 16, FP16, 33, 31, 2, 2, BSHD),
    (24, 24, CHUNKS, 16, 32, FP16, 1, 65, 4, 1, STRIDED),
    (24, 40, CHUNKS, 32, 32, FP32, 65, 1, 2, 1, EXPANDED),
    (40, 24, CHUNKS, 32, 16, FP16, 63, 64, 4, 2, BSHD),
    (40, 40, PADDED, 16, 16, FP16, 32, 32, 2, 1, PACKED),
    (72, 72, CHUNKS, 16, 16, FP16, 31, 33, 2, 2, STRIDED),
    (72, 64, PADDED, 32, 32, FP32, 17, 48, 3, 1, BSHD),
    (80, 80, CHUNKS, 32, 16, FP16, 48, 17, 2, 1, EXPANDED),
    (80, 80, PADDED, 16, 32, FP16, 2, 63, 8, 1, BSHD),
    (96, 96, CHUNKS, 16, 32, FP32, 33, 2, 2, 1, PACKED),
    (96, 32, PADDED, 32, 16, FP16, 64, 48, 1, 1, STRIDED),
    (112, 112, CHUNKS, 16, 16, FP16, 15, 16, 2, 2, PACKED),
    (128, 64, CHUNKS, 32, 32, FP16, 32, 96, 4, 4, BSHD),
    (160, 128, CHUNKS, 32, 16, FP32, 40, 24, 2, 1, STRIDED),
    (224, 224, CHUNKS, 16, 16, FP16, 17, 15, 2, 1, PACKED),
    (256, 16, CHUNKS, 16, 16, FP16, 16, 33, 2, 2, EXPANDED),
]


def name_of(row):
    head_dim, head_dim_v, split, block_m, block_n, dtype, seqlen_q, seqlen_k, heads, kv_heads, layout = row
    tiles = f"{block_m}x{block_n}"
    return f"d{head_dim}x{head_dim_v} {split} {tiles} {dtype} q{seqlen_q} k{seqlen_k} h{heads}/{kv_heads} {layout}"


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("pass_", Pass)
@pytest.mark.parametrize("row", GRID, ids=name_of)
def test_meets_the_rules(row, pass_, causal):
    head_dim, head_dim_v, split, block_m, block_n, dtype, seqlen_q, seqlen_k, heads, kv_heads, layout = row
    spec = spec_of(pass_, head_dim, head_dim_v, causal=causal)
    case = Case(
        spec=spec, dtype=dtype, seqlen_q=seqlen_q, seqlen_k=seqlen_k, heads=heads, kv_heads=kv_heads, layout=layout,
        families=(Family.NORMAL, Family.NEEDLE),
    )  # fmt: skip
    module = load(variant_of(spec, block_m, block_n, split))
    report = check(launch_of(module), prepare(case, CPU))
    assert report.ok, report.message


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    pass_=st.sampled_from(Pass),
    head_dims=st.tuples(*[st.integers(2, 16).map(lambda eighths: 8 * eighths)] * 2),
    causal=st.booleans(),
    split=st.sampled_from(HeadDimSplit),
    tiles=st.tuples(*[st.sampled_from([16, 32])] * 2),
    dtype=st.sampled_from([FP16, FP32]),
    seqlens=st.tuples(*[st.integers(1, 70)] * 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    layout=st.sampled_from(Layout),
    family=st.sampled_from([f for f in Family if f is not Family.NAN_IN_FUTURE_KEYS]),
    scale_factor=st.floats(0.25, 2.0),
)
def test_meets_the_rules_anywhere(
    pass_, head_dims, causal, split, tiles, dtype, seqlens, kv_heads, group, layout, family, scale_factor
):
    spec = spec_of(pass_, *head_dims, causal=causal)
    case = Case(
        spec=spec, dtype=dtype, seqlen_q=seqlens[0], seqlen_k=seqlens[1], heads=kv_heads * group, kv_heads=kv_heads,
        layout=layout, families=(family,), scale_factor=scale_factor,
    )  # fmt: skip
    report = check(launch_of(load(variant_of(spec, *tiles, split))), prepare(case, CPU))
    assert report.ok, report.message


def inputs_of(spec, seqlen_q=37, seqlen_k=50, heads=4, kv_heads=4):
    case = Case(
        spec=spec, dtype=FP16, seqlen_q=seqlen_q, seqlen_k=seqlen_k, heads=heads, kv_heads=kv_heads,
        families=(Family.NORMAL,),
    )  # fmt: skip
    return make_inputs(case, CPU)


def forward(module, q, k, v):
    """Through launch(), as a person would who copied the file."""
    out, lse = q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)
    module.launch(q, k, v, out, lse, q.shape[-1] ** -0.5)
    return out, lse


def backward(module, dout, q, k, v, out, lse):
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    module.launch(dout, q, k, v, out, lse, *gradients, q.shape[-1] ** -0.5)
    return gradients


@pytest.fixture(params=[False, True], ids=["full", "causal"])
def modules(request):
    specs = [spec_of(pass_, 40, 24, causal=request.param) for pass_ in Pass]
    return [load(variant_of(spec)) for spec in specs], specs[0]


def test_constant_values_come_back(modules):
    (module, _), spec = modules
    inputs = inputs_of(spec)
    v = inputs.v[:, :, :1].expand_as(inputs.v).contiguous()
    out, _ = forward(module, inputs.q, inputs.k, v)
    torch.testing.assert_close(out, v[:, :, :1].expand_as(out), rtol=1e-3, atol=1e-3)


def test_grouped_heads_equal_repeated_ones(modules):
    (forward_module, backward_module), spec = modules
    x = inputs_of(spec, heads=4, kv_heads=2)
    k, v = (t.repeat_interleave(2, 1) for t in (x.k, x.v))
    grouped, repeated = forward(forward_module, x.q, x.k, x.v), forward(forward_module, x.q, k, v)
    for got, expected in zip(grouped, repeated, strict=True):
        assert torch.equal(got, expected)
    dq, *grouped_sums = backward(backward_module, x.dout, x.q, x.k, x.v, *grouped)
    dq_repeated, *single = backward(backward_module, x.dout, x.q, k, v, *repeated)
    assert torch.equal(dq, dq_repeated)
    for got, members in zip(grouped_sums, single, strict=True):
        torch.testing.assert_close(got, members.unflatten(1, (2, 2)).sum(2), rtol=2e-3, atol=2e-3)


def test_keys_may_change_places_where_there_is_no_mask():
    spec = spec_of(Pass.FORWARD, 40, 24, causal=False)
    module, x = load(variant_of(spec)), inputs_of(spec)
    order = torch.randperm(x.k.shape[2], generator=torch.Generator().manual_seed(1))
    out, lse = forward(module, x.q, x.k, x.v)
    permuted_out, permuted_lse = forward(module, x.q, x.k[:, :, order], x.v[:, :, order])
    torch.testing.assert_close(permuted_out, out, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(permuted_lse, lse, rtol=0, atol=1e-5)


def test_the_same_launch_gives_the_same_bits(modules):
    (forward_module, backward_module), spec = modules
    x = inputs_of(spec)
    first, second = (forward(forward_module, x.q, x.k, x.v) for _ in range(2))
    assert all(map(torch.equal, first, second))
    gradients, again = (backward(backward_module, x.dout, x.q, x.k, x.v, *first) for _ in range(2))
    assert all(map(torch.equal, gradients, again))


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["batch", "head", "row"])
def test_offsets_pass_two_to_the_31(dim):
    """Views of memory that is reserved and never touched but for their rows: 4 to 9 GB of addresses, a few pages."""
    forward_spec, backward_spec = (spec_of(pass_, 16, causal=True) for pass_ in Pass)
    shape = (2, 2, 18, 16)

    def far_apart(tensor):
        strides = [18 * 16 * 2, 18 * 16, 16]
        strides[dim] = 2**31 // (shape[dim] - 1) // 16 * 16 + 16
        memory = torch.empty(
            sum((n - 1) * s for n, s in zip(shape, [*strides, 1], strict=True)) + 1, dtype=torch.float16
        )
        return memory.as_strided(shape, (*strides, 1)).copy_(tensor)

    x = inputs_of(forward_spec, 18, 18, 2, 2)
    packed = [t.repeat(2, 1, 1, 1) for t in (x.q, x.k, x.v, x.dout)]
    q, k, v, dout = map(far_apart, packed)
    out, lse = far_apart(torch.zeros(shape)), torch.empty(shape[:3])
    module = load(variant_of(forward_spec, 16, 16))
    module.launch(q, k, v, out, lse, 0.25)
    expected_out, expected_lse = forward(module, *packed[:3])
    assert torch.equal(out, expected_out)
    assert torch.equal(lse, expected_lse)
    gradients = [far_apart(torch.zeros(shape)) for _ in range(3)]
    module = load(variant_of(backward_spec, 16, 16))
    module.launch(dout, q, k, v, out, lse, *gradients, 0.25)
    assert all(map(torch.equal, gradients, backward(module, packed[3], *packed[:3], expected_out, expected_lse)))

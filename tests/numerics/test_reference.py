import pytest
import torch

from attnforge import reference
from attnforge.reference import (
    attention,
    attention_backward,
    eager_lp,
    eager_lp_backward,
    last_visible_key,
    operand_roundings,
    rounding_bounds,
)

SHAPES = [
    # batch, heads, kv_heads, seqlen_q, seqlen_k, head_dim, head_dim_v
    (2, 4, 2, 17, 23, 24, 16),
    (1, 4, 4, 23, 17, 16, 24),
    (2, 6, 1, 9, 9, 16, 16),
    (1, 1, 1, 1, 5, 8, 8),
]


def make(shape, dtype=torch.float64):
    batch, heads, kv_heads, seqlen_q, seqlen_k, head_dim, head_dim_v = shape
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, seqlen_q, head_dim, dtype=torch.float64, generator=draw)
    k = torch.randn(batch, kv_heads, seqlen_k, head_dim, dtype=torch.float64, generator=draw)
    v = torch.randn(batch, kv_heads, seqlen_k, head_dim_v, dtype=torch.float64, generator=draw)
    dout = torch.randn(batch, heads, seqlen_q, head_dim_v, dtype=torch.float64, generator=draw)
    return tuple(x.to(dtype) for x in (q, k, v, dout))


def autograd_attention(q, k, v, causal, scale):
    """Another way to say it: repeated kv heads, a mask of finite numbers, autograd."""
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).mT * scale
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if causal:
        seen = seen.tril(k.shape[2] - q.shape[2])
    p = scores.masked_fill(~seen, -1e300).softmax(-1) * seen
    return p @ v.repeat_interleave(group, 1)


@pytest.fixture(params=[1 << 26, 100], ids=["at once", "in pieces"])
def _scores_at_once(request, monkeypatch):
    monkeypatch.setattr(reference, "SCORES_AT_ONCE", request.param)


@pytest.mark.usefixtures("_scores_at_once")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_autograd(shape, causal):
    q, k, v, dout = make(shape)
    for x in (q, k, v):
        x.requires_grad_()
    expected = autograd_attention(q, k, v, causal, 0.3)
    gradients = torch.autograd.grad(expected, (q, k, v), dout)
    with torch.no_grad():
        out, lse = attention(q, k, v, causal=causal, softmax_scale=0.3)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
        explicit = attention_backward(dout, q, k, v, causal=causal, softmax_scale=0.3)
        torch.testing.assert_close(tuple(explicit), gradients, rtol=1e-12, atol=1e-13)
        given_out = attention_backward(dout, q, k, v, causal=causal, softmax_scale=0.3, out=out)
        torch.testing.assert_close(tuple(given_out), gradients, rtol=1e-12, atol=1e-13)
    assert lse.shape == q.shape[:3]


def test_lse_is_natural_and_the_scale_is_one_over_root_d():
    q, k, v, _ = make(SHAPES[2])
    scores = q @ k.mT / 16**0.5
    torch.testing.assert_close(attention(q, k, v, causal=False).lse, scores.exp().sum(-1).log())


def test_rows_that_see_no_key_are_zero():
    q, k, v, dout = make((1, 2, 2, 7, 3, 16, 16))
    out, lse = attention(q, k, v, causal=True)
    assert (out[:, :, :4] == 0).all()
    assert lse[:, :, :4].isneginf().all()
    assert lse[:, :, 4:].isfinite().all()
    dq, dk, dv = attention_backward(dout, q, k, v, causal=True)
    assert (dq[:, :, :4] == 0).all()
    assert dk.isfinite().all()
    assert dv.isfinite().all()


def test_causal_is_aligned_bottom_right():
    assert last_visible_key(2, 5).tolist() == [3, 4]
    assert last_visible_key(4, 2).tolist() == [-2, -1, 0, 1]


def test_low_precision_rounds_and_stays_close():
    q, k, v, dout = make(SHAPES[0], torch.bfloat16)
    low = eager_lp(q, k, v, causal=True)
    assert low.out.dtype == torch.bfloat16
    assert low.lse.dtype == torch.float32
    error = (low.out.double() - attention(q, k, v, causal=True).out).abs().max()
    assert 1e-4 < error < 5e-2
    exact = attention_backward(dout, q, k, v, causal=True)
    for got, expected in zip(eager_lp_backward(dout, q, k, v, causal=True), exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert 1e-4 < (got.double() - expected).abs().max() / expected.abs().max() < 5e-2


def test_takes_expanded_and_transposed_tensors():
    q, k, v, dout = make((2, 4, 4, 5, 6, 16, 16))
    k, v = k[:, :1].expand(-1, 4, -1, -1), v[:, :1].expand(-1, 4, -1, -1)
    strided = q.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(
        attention_backward(dout, strided, k, v, causal=True),
        attention_backward(dout, q, k.contiguous(), v.contiguous(), causal=True),
    )


@pytest.mark.usefixtures("_scores_at_once")
@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 1, 200, 1, 16, 16), (1, 4, 1, 64, 300, 64, 64)])
def test_rounding_bounds_hold_in_fp32_and_are_not_loose(shape):
    inputs = make(shape, torch.float32)
    q, k, v, dout = inputs
    for magnitude in (1.0, 5.0):
        tensors = dout, magnitude * q, k, v
        exact = attention_backward(*tensors, causal=False)
        rounded = eager_lp_backward(*tensors, causal=False)
        for got, expected, bound in zip(rounded, exact, rounding_bounds(*tensors, causal=False), strict=True):
            assert ((got - expected).abs() <= 2**-22 * bound).all()
            if shape[4] > 1:  # of one key, dq and dk are 0 but for rounding
                assert 2**-24 * bound.max() < 2e-3 * expected.abs().max()


@pytest.mark.usefixtures("_scores_at_once")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("upstream", [1.0, 1e-4])  # the ds of the small ones are subnormal in fp16
@pytest.mark.parametrize("equal_keys", [False, True])
def test_operand_roundings_are_the_size_of_what_rounding_makes(dtype, upstream, equal_keys):
    q, k, v, dout = (x.double() for x in make((2, 4, 2, 150, 170, 24, 24), dtype))
    k = k[:, :, :1].expand_as(k) if equal_keys else k
    tensors = [x.to(dtype) for x in (dout * upstream, q, k, v)]
    dout, q, k, v = (x.double() for x in tensors)
    keys, values = (x.repeat_interleave(2, 1) for x in (k, v))
    p = (q @ keys.mT * 24**-0.5).softmax(-1)
    dp = dout @ values.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    p_error, ds_error = (x.to(dtype).double() - x for x in (p, ds))
    dk, dv = (x.unflatten(1, (2, 2)).sum(2) for x in (ds_error.mT @ q, p_error.mT @ dout))
    errors = ds_error @ keys * 24**-0.5, dk * 24**-0.5, dv
    units = operand_roundings(*tensors, causal=False)
    for error, unit in zip(errors, units, strict=True):
        assert (error.abs() <= 4 * unit).all()
        assert error.norm() / unit.norm() < 0.8
    for error, unit in zip(errors[:2], units[:2], strict=True):  # equal p may be rounded by little, all alike
        assert error.norm() / unit.norm() > 0.2

"""attention() as models call it. What needs kernels runs in the interpreter; tests/gpu/test_ops_gpu.py has the rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import attnforge
from attnforge import ops, reference
from attnforge.cli import main
from attnforge.errors import KernelNotGeneratedError, UnsupportedInputError

interpreted = pytest.mark.interpreter


@pytest.fixture(autouse=True)
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one, for the time of a test."""
    monkeypatch.setenv("ATTNFORGE_CACHE_DIR", str(tmp_path))
    attnforge.reload()
    yield tmp_path
    attnforge.reload()


def qkv(*, heads: int = 2, kv_heads: int = 1, seqlen_q: int = 5, seqlen_k: int = 7, head_dim: int = 32,
        dtype: torch.dtype = torch.float32, grad: bool = False) -> list[torch.Tensor]:  # fmt: skip
    draw = torch.Generator().manual_seed(seqlen_q)
    shapes = ((1, heads, seqlen_q, head_dim), (1, kv_heads, seqlen_k, head_dim), (1, kv_heads, seqlen_k, head_dim))
    return [torch.randn(shape, generator=draw).to(dtype).requires_grad_(grad) for shape in shapes]


def assert_right(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False,
                 scale: float | None = None) -> None:  # fmt: skip
    expected = reference.attention(q.detach(), k.detach(), v.detach(), causal=causal, softmax_scale=scale)
    tolerance = 1e-3 if out.dtype is torch.float16 else 1e-5
    torch.testing.assert_close(out, expected.out.to(out.dtype), atol=tolerance, rtol=tolerance)


def test_cpu_tensors_are_refused_where_nothing_interprets() -> None:
    with pytest.raises(UnsupportedInputError, match=r"q\.device: got cpu; supported: cuda"):
        attnforge.attention(*qkv())
    with pytest.raises(UnsupportedInputError, match=r"q\.device: got cpu; supported: cuda"):
        attnforge.attention(*qkv(grad=True))


@pytest.mark.parametrize("grad", [False, True])
def test_what_is_no_tensor_is_named(grad: bool) -> None:
    _, k, v = qkv(grad=grad)
    with pytest.raises(UnsupportedInputError, match="q: got NoneType None"):
        attnforge.attention(None, k, v)  # type: ignore[call-overload]


@interpreted
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_out_and_lse_are_those_of_the_reference(causal: bool, dtype: torch.dtype) -> None:
    q, k, v = qkv(dtype=dtype)
    out, lse = attnforge.attention(q, k, v, causal=causal, softmax_scale=0.3, return_lse=True)
    assert out.dtype is dtype
    assert_right(out, q, k, v, causal, 0.3)
    expected = reference.attention(q, k, v, causal=causal, softmax_scale=0.3)
    torch.testing.assert_close(lse, expected.lse.float(), atol=1e-4, rtol=0)


@interpreted
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_the_reference(causal: bool) -> None:
    q, k, v = qkv(heads=4, kv_heads=2, grad=True)
    out = attnforge.attention(q, k, v, causal=causal)
    dout = torch.randn_like(out)
    out.backward(dout)
    expected = reference.attention_backward(dout, q.detach(), k.detach(), v.detach(), causal=causal)
    for tensor, gradient in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient.float())


@interpreted
def test_gradients_of_a_sum_whose_dout_is_expanded() -> None:
    q, k, v = qkv(grad=True)
    attnforge.attention(q, k, v).sum().backward()
    expected = reference.attention_backward(torch.ones(q.shape), q.detach(), k.detach(), v.detach(), causal=False)
    torch.testing.assert_close(k.grad, expected.dk.float())


@interpreted
def test_only_what_requires_a_gradient_gets_one() -> None:
    q, k, v = qkv()
    k.requires_grad_()
    attnforge.attention(q, k, v).sum().backward()
    assert (q.grad, v.grad) == (None, None)
    assert k.grad is not None


@interpreted
def test_lse_carries_no_gradient_and_there_is_no_second_derivative() -> None:
    q, k, v = qkv(grad=True)
    out, lse = attnforge.attention(q, k, v, return_lse=True)
    assert out.requires_grad
    assert not lse.requires_grad
    (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


@interpreted
def test_without_a_gradient_to_come_autograd_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(*_: object) -> None:
        raise AssertionError("autograd.Function costs time")

    monkeypatch.setattr(ops._Attention, "apply", apply)
    assert_right(attnforge.attention(*qkv()), *qkv())
    with torch.no_grad():
        assert_right(attnforge.attention(*qkv(grad=True)), *qkv())


@interpreted
def test_empty_inputs_give_empty_or_zero_gradients() -> None:
    q, k, v = qkv(seqlen_k=0, grad=True)
    out, lse = attnforge.attention(q, k, v, return_lse=True)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    out.sum().backward()
    assert q.grad is not None
    assert (q.grad == 0).all()
    assert k.grad is not None
    assert k.grad.shape == (1, 1, 0, 32)


@interpreted
def test_one_tensor_three_times_then_three_tensors() -> None:
    (x, _, _), (q, k, v) = qkv(kv_heads=2, seqlen_q=7), qkv(kv_heads=2, seqlen_q=7)
    k, v = k + 1, v - 1
    assert_right(attnforge.attention(x, x, x), x, x, x)
    assert_right(attnforge.attention(q, k, v), q, k, v)


@interpreted
def test_any_strides_are_right() -> None:
    q, k, v = qkv(heads=4, kv_heads=4)
    rows_apart = torch.randn(1, 4, 32, 7).transpose(2, 3)
    assert_right(attnforge.attention(q, rows_apart, v), q, rows_apart, v)
    shared = k[:, :1].expand(1, 4, 7, 32)
    assert_right(attnforge.attention(q, shared, shared), q, shared, shared)
    bshd = q.transpose(1, 2).contiguous().transpose(1, 2)
    out = attnforge.attention(bshd, k, v)
    assert_right(out, q, k, v)
    assert out.stride() == bshd.stride()


@interpreted
def test_gradients_reach_what_was_expanded_or_copied() -> None:
    q, _, v = qkv(heads=4, kv_heads=4)
    narrow = torch.randn(1, 1, 32, 7).requires_grad_()
    attnforge.attention(q, narrow.transpose(2, 3).expand(1, 4, 7, 32), v).square().sum().backward()
    dense = narrow.detach().transpose(2, 3).expand(1, 4, 7, 32).contiguous().requires_grad_()
    attnforge.attention(q, dense, v).square().sum().backward()
    assert narrow.grad is not None
    assert dense.grad is not None
    torch.testing.assert_close(narrow.grad, dense.grad.sum(1, keepdim=True).transpose(2, 3))


@interpreted
def test_bfloat16_is_refused_in_the_interpreter() -> None:
    with pytest.raises(UnsupportedInputError, match=r"q\.dtype: got torch\.bfloat16.*bfloat16 dot is wrong"):
        attnforge.attention(*qkv(dtype=torch.bfloat16))


@interpreted
def test_a_head_dim_that_is_not_shipped_works_once_it_is_generated(users_folder: Path) -> None:
    q, k, v = qkv(head_dim=24, grad=True)
    with pytest.raises(KernelNotGeneratedError, match="run `attnforge generate --head-dim 24` once"):
        attnforge.attention(q, k, v)
    with pytest.raises(SystemExit) as exit_:
        main(["generate", "--head-dim", "24", "--target", "sm_90"])
    assert not exit_.value.code
    assert any((users_folder / "kernels").rglob("*.py"))
    out = attnforge.attention(q, k, v)
    assert_right(out, q, k, v)
    out.sum().backward()
    assert k.grad is not None


@interpreted
def test_torch_compile_breaks_its_graph_and_gives_the_same() -> None:
    q, k, v = qkv(grad=True)
    compiled = torch.compile(lambda q, k, v: attnforge.attention(2 * q, k, v) + 1, backend="eager")
    out = compiled(q, k, v)
    torch.testing.assert_close(out, attnforge.attention(2 * q, k, v) + 1)
    out.sum().backward()
    assert q.grad is not None

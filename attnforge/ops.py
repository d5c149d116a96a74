"""attention(): the operation that models call."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from attnforge.dispatch.dispatcher import DISPATCHER


@overload
def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = ..., softmax_scale: float | None = ...,
    deterministic: bool = ..., return_lse: Literal[False] = ...,
) -> torch.Tensor: ...  # fmt: skip


@overload
def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool = ..., softmax_scale: float | None = ...,
    deterministic: bool = ..., return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...  # fmt: skip


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax(softmax_scale * q @ k^T) @ v, by the kernel that was tuned for it; differentiable once in q, k and v.

    Args:
        q: (batch, heads, seqlen_q, head_dim), float16, bfloat16 or float32, on a CUDA device.
        k: (batch, kv_heads, seqlen_k, head_dim), where kv_heads divides heads: grouped and multi-query attention.
        v: (batch, kv_heads, seqlen_k, head_dim_v). All three have one dtype and device, and any strides; one whose last
            dim is not contiguous is copied first.
        causal: a query sees only keys up to its own position, aligned bottom-right: the last query sees the last key.
        softmax_scale: a finite number above 0; None is head_dim ** -0.5.
        deterministic: gradients that repeat bitwise. Without it a backward may add up dq in any order, up to a sixth
            faster; all else repeats bitwise anyway.
        return_lse: give the log-sum-exp of the scaled scores too; no gradient flows through it.

    Returns:
        out, (batch, heads, seqlen_q, head_dim_v) in q's dtype, with its dims in memory in the order of q's; with
        return_lse also lse, (batch, heads, seqlen_q) float32, natural logarithm. Where a query sees no key, out is 0
        and lse -inf.

    Head dims are multiples of 8 from 16 to 256. The first call of its kind compiles a kernel (seconds, kept on disk by
    Triton); later ones launch it. On CPU tensors kernels run in Triton's interpreter when TRITON_INTERPRET=1 is set
    before the first call, in float16 and float32, slowly. Under torch.compile this is a graph break.

    Raises UnsupportedInputError, which names the argument and what is supported; KernelNotGeneratedError, with the
    command to run, for a head dim that is neither shipped nor generated; ColdCaptureError when the first call of its
    kind is made during the capture of a CUDA graph; ForkedProcessError in a child forked after CUDA was used.
    """
    if torch.compiler.is_compiling():
        out, lse = _outside_the_graph(q, k, v, causal, softmax_scale, deterministic)
    else:
        out, lse = _attention(q, k, v, causal, softmax_scale, deterministic)
    return (out, lse) if return_lse else out


def reload() -> None:
    """Read the environment and the tuned caches again at the next call: after a tune in this very process.

    Kernels that are already loaded stay loaded.
    """
    DISPATCHER.reload()


def _outside_the_graph(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, softmax_scale: float | None, deterministic: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What torch.compile sees. Disabled here, not by a decorator: that would load all of Dynamo with attnforge."""
    disabled = torch.compiler.disable(_attention)  # type: ignore[no-untyped-call]
    return disabled(q, k, v, causal, softmax_scale, deterministic)  # type: ignore[no-any-return]


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, softmax_scale: float | None, deterministic: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    except AttributeError:  # not tensors, which the dispatcher says better
        needs_grad = False
    if needs_grad:
        return _Attention.apply(q, k, v, causal, softmax_scale, deterministic)  # type: ignore[no-any-return, no-untyped-call]
    # Without a gradient to come, autograd.Function would only cost time.
    out, lse = DISPATCHER.forward(q, k, v, causal, softmax_scale, deterministic, False)
    return out, lse


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, softmax_scale: float | None,
        deterministic: bool,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        out, lse = DISPATCHER.forward(q, k, v, causal, softmax_scale, deterministic, True)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.mark_non_differentiable(lse)
        ctx.options = (causal, softmax_scale, deterministic)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor, _: FunctionCtx) -> tuple[torch.Tensor | None, ...]:
        dq, dk, dv = DISPATCHER.backward(dout, *ctx.saved_tensors, *ctx.options)
        return dq, dk, dv, None, None, None

"""Checks of attention()'s arguments, made before anything touches the GPU.

Every failure is an UnsupportedInputError that names the argument, what was given and what is supported.
"""

from __future__ import annotations

from numbers import Real

import torch

from attnforge.codegen import SUPPORTED_HEAD_DIMS
from attnforge.errors import UnsupportedInputError

SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LONGEST_SEQUENCE = 2**30
"""Positions are 32-bit ints inside the kernels, and blocks reach past the last one."""
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_LARGEST_SCALE = torch.finfo(torch.float32).max
_SHAPES = {
    "q": "(batch, heads, seqlen_q, head_dim)",
    "k": "(batch, kv_heads, seqlen_k, head_dim)",
    "v": "(batch, kv_heads, seqlen_k, head_dim_v)",
}


def check_arguments(
    q: object, k: object, v: object, *, causal: object, softmax_scale: object, deterministic: object, interpreted: bool
) -> None:
    """Raise UnsupportedInputError on the first argument of attention() that no kernel can take.

    ``interpreted`` says that Triton's interpreter runs the kernels: on CPU tensors too, but not in bfloat16.
    """
    for name, flag in (("causal", causal), ("deterministic", deterministic)):
        if not isinstance(flag, bool):
            raise UnsupportedInputError(name, _described(flag), "True or False")
    _check_scale(softmax_scale)
    tensors = {"q": q, "k": k, "v": v}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, interpreted)
    _check_agreement(**tensors)  # type: ignore[arg-type]  # they are tensors: _check_tensor said so


def _check_scale(scale: object) -> None:
    if scale is None:
        return
    supported = "a finite number above 0 that float32 holds, or None for head_dim ** -0.5"
    is_number = isinstance(scale, Real) and not isinstance(scale, bool)
    if not is_number or not _SMALLEST_SCALE <= scale <= _LARGEST_SCALE:  # type: ignore[operator]
        raise UnsupportedInputError("softmax_scale", _described(scale), supported)


def _check_tensor(name: str, tensor: object, interpreted: bool) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise UnsupportedInputError(name, _described(tensor), f"a torch.Tensor {_SHAPES[name]}")
    if _has_no_memory_of_its_own(tensor):
        supported = "a dense torch.Tensor that is no wrapper (no FakeTensor, DTensor, nested or sparse tensor)"
        raise UnsupportedInputError(name, f"a {type(tensor).__name__} with layout {tensor.layout}", supported)
    _check_device(name, tensor, interpreted)
    if tensor.dtype not in SUPPORTED_DTYPES:
        raise UnsupportedInputError(f"{name}.dtype", tensor.dtype, ", ".join(map(str, SUPPORTED_DTYPES)))
    if interpreted and tensor.dtype is torch.bfloat16:
        reason = "torch.float16 or torch.float32 under TRITON_INTERPRET=1, whose bfloat16 dot is wrong"
        raise UnsupportedInputError(f"{name}.dtype", tensor.dtype, reason)
    if tensor.dim() != 4:
        raise UnsupportedInputError(f"{name}.shape", tuple(tensor.shape), f"four dims, {_SHAPES[name]}")
    if tensor.shape[1] < 1:
        raise UnsupportedInputError(f"{name}.shape", tuple(tensor.shape), "at least one head")
    if tensor.shape[2] > LONGEST_SEQUENCE:
        raise UnsupportedInputError(f"{name}.shape", tuple(tensor.shape), f"sequences up to {LONGEST_SEQUENCE}")
    if tensor.shape[3] not in SUPPORTED_HEAD_DIMS:
        supported = f"a multiple of 8 from {SUPPORTED_HEAD_DIMS[0]} to {SUPPORTED_HEAD_DIMS[-1]}"
        raise UnsupportedInputError(f"{name}'s head dim", tensor.shape[3], supported)


def _has_no_memory_of_its_own(tensor: torch.Tensor) -> bool:
    wraps = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return wraps or tensor.is_nested or tensor.layout != torch.strided


def _check_device(name: str, tensor: torch.Tensor, interpreted: bool) -> None:
    if tensor.is_cuda or (interpreted and tensor.device.type == "cpu"):
        return
    supported = "cuda or cpu under TRITON_INTERPRET=1" if interpreted else "cuda (cpu with TRITON_INTERPRET=1, slowly)"
    raise UnsupportedInputError(f"{name}.device", tensor.device, supported)


def _check_agreement(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, tensor in (("k", k), ("v", v)):
        for fact in ("dtype", "device"):
            given, expected = getattr(tensor, fact), getattr(q, fact)
            if given != expected:
                raise UnsupportedInputError(f"{name}.{fact}", given, f"{expected}, as that of q")
        if tensor.shape[0] != q.shape[0]:
            raise UnsupportedInputError(f"{name}'s batch", tensor.shape[0], f"{q.shape[0]}, as that of q")
    if k.shape[3] != q.shape[3]:
        raise UnsupportedInputError("k's head dim", k.shape[3], f"{q.shape[3]}, as that of q")
    for index, size in ((1, "heads"), (2, "seqlen")):
        if v.shape[index] != k.shape[index]:
            raise UnsupportedInputError(f"v's {size}", v.shape[index], f"{k.shape[index]}, as that of k")
    if q.shape[1] % k.shape[1]:
        raise UnsupportedInputError("k's heads", k.shape[1], f"a divisor of the {q.shape[1]} heads of q")


def _described(value: object) -> str:
    """Type and value, the value cut short: it may be anything."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"

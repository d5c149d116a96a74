import math
import warnings
from typing import Any

import numpy
import pytest
import torch

from attnforge.errors import UnsupportedInputError
from attnforge.validation import check_arguments


def tensor(*shape: int, dtype: torch.dtype = torch.float16, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def check(interpreted: bool = True, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "q": tensor(2, 4, 8, 64), "k": tensor(2, 2, 9, 64), "v": tensor(2, 2, 9, 32),
        "causal": False, "softmax_scale": None, "deterministic": False,
    } | changes  # fmt: skip
    q, k, v = (arguments.pop(name) for name in "qkv")
    check_arguments(q, k, v, interpreted=interpreted, **arguments)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors are a prototype
        return torch.nested.nested_tensor([torch.zeros(2, 4, 64), torch.zeros(1, 4, 64)])


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, as DTensor and FakeTensor are."""

    @staticmethod
    def __new__(cls) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, (2, 4, 8, 64), dtype=torch.float16)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> None:
        raise AssertionError("nothing is computed with it")


class Labelled(torch.Tensor):
    """A tensor with a name: its memory is its own."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"q": tensor(0, 4, 8, 64), "k": tensor(0, 2, 9, 64), "v": tensor(0, 2, 9, 32)},
        {"q": tensor(2, 4, 0, 64)},
        {"k": tensor(2, 2, 0, 64), "v": tensor(2, 2, 0, 32)},
        {"q": tensor(2, 4, 8, 64).requires_grad_()},
        {"q": torch.nn.Parameter(tensor(2, 4, 8, 64))},
        {"q": tensor(2, 4, 8, 64).as_subclass(Labelled)},
        {"q": tensor(2, 4, 64, 8).transpose(2, 3)},
        {"q": tensor(1, 1, 8, 64).expand(2, 4, 8, 64)},
        {"causal": True, "deterministic": True, "softmax_scale": 1},
        {"softmax_scale": numpy.float32(0.5)},
        {"softmax_scale": 1e-37},
    ],
)
def test_what_kernels_can_take_passes(changes: dict[str, Any]) -> None:
    check(**changes)


@pytest.mark.parametrize(
    ("changes", "argument", "message"),
    [
        ({"q": None}, "q", "got NoneType None; supported: a torch.Tensor (batch, heads, seqlen_q, head_dim)"),
        ({"v": numpy.zeros(3)}, "v", "got ndarray array([0., 0., 0.]); supported: a torch.Tensor (batch, kv_heads,"),
        ({"q": Wrapper()}, "q", "got a Wrapper with layout torch.strided; supported: a dense torch.Tensor that is no"),
        ({"q": nested()}, "q", "supported: a dense torch.Tensor"),
        ({"k": tensor(2, 2, 9, 64).to_sparse()}, "k", "layout torch.sparse_coo; supported: a dense torch.Tensor"),
        ({"k": tensor(2, 2, 9, 64, device="meta")}, "k.device", "got meta; supported: cuda or cpu"),
        ({"q": tensor(2, 4, 8, 64, dtype=torch.float64)}, "q.dtype", "got torch.float64; supported: torch.float16,"),
        ({"k": tensor(2, 2, 9, 64, dtype=torch.int8)}, "k.dtype", "got torch.int8; supported: torch.float16, torch.b"),
        ({"v": tensor(2, 2, 9, 32, dtype=torch.float32)}, "v.dtype", "got torch.float32; supported: torch.float16, as"),
        ({"v": tensor(2, 2, 9, 32, dtype=torch.bfloat16)}, "v.dtype", "TRITON_INTERPRET=1, whose bfloat16 dot is"),
        ({"q": tensor(4, 8, 64)}, "q.shape", "got (4, 8, 64); supported: four dims, (batch, heads, seqlen_q,"),
        ({"k": tensor(1, 2, 2, 9, 64)}, "k.shape", "supported: four dims, (batch, kv_heads, seqlen_k, head_dim)"),
        ({"q": tensor(2, 0, 8, 64)}, "q.shape", "got (2, 0, 8, 64); supported: at least one head"),
        ({"k": tensor(1, 1, 1, 64).expand(2, 2, 2**31, 64)}, "k.shape", "supported: sequences up to 1073741824"),
        ({"q": tensor(2, 4, 8, 60)}, "q's head dim", "got 60; supported: a multiple of 8 from 16 to 256"),
        ({"q": tensor(2, 4, 8, 8)}, "q's head dim", "got 8; supported: a multiple of 8 from 16 to 256"),
        ({"v": tensor(2, 2, 9, 264)}, "v's head dim", "got 264; supported: a multiple of 8 from 16 to 256"),
        ({"k": tensor(2, 2, 9, 72)}, "k's head dim", "got 72; supported: 64, as that of q"),
        ({"k": tensor(3, 2, 9, 64)}, "k's batch", "got 3; supported: 2, as that of q"),
        ({"v": tensor(1, 2, 9, 32)}, "v's batch", "got 1; supported: 2, as that of q"),
        ({"v": tensor(2, 4, 9, 32)}, "v's heads", "got 4; supported: 2, as that of k"),
        ({"v": tensor(2, 2, 8, 32)}, "v's seqlen", "got 8; supported: 9, as that of k"),
        ({"k": tensor(2, 3, 9, 64), "v": tensor(2, 3, 9, 32)}, "k's heads", "got 3; supported: a divisor of the 4"),
        ({"causal": None}, "causal", "got NoneType None; supported: True or False"),
        ({"causal": 1}, "causal", "got int 1; supported: True or False"),
        ({"deterministic": "yes"}, "deterministic", "got str 'yes'; supported: True or False"),
        ({"softmax_scale": 0.0}, "softmax_scale", "got float 0.0; supported: a finite number above 0 that float32"),
        ({"softmax_scale": -0.1}, "softmax_scale", "supported: a finite number above 0"),
        ({"softmax_scale": math.nan}, "softmax_scale", "got float nan; supported"),
        ({"softmax_scale": math.inf}, "softmax_scale", "got float inf; supported"),
        ({"softmax_scale": 1e-60}, "softmax_scale", "that float32 holds"),
        ({"softmax_scale": 10**400}, "softmax_scale", "that float32 holds"),
        ({"softmax_scale": True}, "softmax_scale", "got bool True; supported"),
        ({"softmax_scale": torch.tensor(0.5)}, "softmax_scale", "got Tensor tensor(0.5000); supported"),
        ({"softmax_scale": "0.5"}, "softmax_scale", "got str '0.5'; supported"),
    ],
)  # fmt: skip
def test_what_no_kernel_can_take_is_named(changes: dict[str, Any], argument: str, message: str) -> None:
    with pytest.raises(UnsupportedInputError) as caught:
        check(**changes)
    assert caught.value.argument == argument
    assert str(caught.value).startswith(f"{argument}: got ")
    assert message in str(caught.value)


def test_cpu_tensors_need_the_interpreter() -> None:
    with pytest.raises(UnsupportedInputError, match=r"q\.device: got cpu; supported: cuda \(cpu with"):
        check(interpreted=False)


def test_a_long_value_is_cut_short() -> None:
    with pytest.raises(UnsupportedInputError) as caught:
        check(q="x" * 1000)
    assert len(str(caught.value)) < 200

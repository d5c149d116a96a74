import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch

from attnforge.codegen import AttentionSpec, Pass, Variant
from attnforge.dispatch import dispatcher
from attnforge.errors import KernelNotGeneratedError, UnsupportedInputError
from tests.runtime.calls import backward, forward, hows, misaligned, qkv, tensor
from tests.runtime.stand_ins import StandInGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandInGpu:
    return StandInGpu.install(monkeypatch)


def test_the_first_call_compiles_and_the_next_uses_the_held_kernel(gpu: StandInGpu) -> None:
    forward(gpu)
    out, lse = forward(gpu)
    assert hows(gpu) == ["jit", "held"]
    assert (out.shape, out.dtype) == ((2, 4, 8, 64), torch.float16)
    assert (lse.shape, lse.dtype, lse.is_contiguous()) == ((2, 4, 8), torch.float32, True)


def test_a_held_kernel_gets_this_calls_tensors_and_the_first_calls_scalars(gpu: StandInGpu) -> None:
    x = tensor(1, 2, 8, 64)
    forward(gpu, q=x, k=x, v=x)  # one tensor three times: they must be told apart
    first = gpu.recorder.launches[0]
    q, k, v = tensor(1, 2, 8, 64), tensor(1, 2, 8, 64), tensor(1, 2, 8, 64)
    out, lse = forward(gpu, q=q, k=k, v=v)
    _, how, tensors, scalars = gpu.recorder.launches[1]
    assert how == "held"
    assert [t.data_ptr() for t in tensors] == [t.data_ptr() for t in (q, k, v, out, lse)]
    assert scalars == first[3]


OTHER_CALLS: dict[str, dict[str, Any]] = {
    "dtype": {name: t.float() for name, t in qkv().items()},
    "batch": {"q": tensor(3, 4, 8, 64), "k": tensor(3, 2, 9, 64), "v": tensor(3, 2, 9, 64)},
    "seqlen_q": {"q": tensor(2, 4, 7, 64)},
    "seqlen_k": {"k": tensor(2, 2, 10, 64), "v": tensor(2, 2, 10, 64)},
    "kv heads": {"k": tensor(2, 1, 9, 64), "v": tensor(2, 1, 9, 64)},
    "strides of q": {"q": tensor(2, 8, 4, 64).transpose(1, 2)},
    "strides of k": {"k": tensor(2, 9, 2, 64).transpose(1, 2)},
    "strides of v": {"v": tensor(1, 1, 9, 64).expand(2, 2, 9, 64)},
    "alignment of q": {"q": misaligned(2, 4, 8, 64)},
    "alignment of k": {"k": misaligned(2, 2, 9, 64)},
    "alignment of v": {"v": misaligned(2, 2, 9, 64)},
    "causal": {"causal": True},
    "scale": {"scale": 0.5},
    "deterministic": {"deterministic": True},
    "type": {"q": tensor(2, 4, 8, 64).as_subclass(type("Labelled", (torch.Tensor,), {}))},
}


@pytest.mark.parametrize("difference", OTHER_CALLS)
def test_a_call_that_differs_is_specialised_anew(gpu: StandInGpu, difference: str) -> None:
    forward(gpu)
    forward(gpu, **OTHER_CALLS[difference])
    forward(gpu)
    forward(gpu, **OTHER_CALLS[difference])
    assert hows(gpu) == ["jit", "jit", "held", "held"]


def test_which_tensor_is_misaligned_matters(gpu: StandInGpu) -> None:
    for name in ("alignment of q", "alignment of k", "alignment of v"):
        forward(gpu, **OTHER_CALLS[name])
    assert hows(gpu) == ["jit"] * 3


def test_out_has_the_memory_layout_of_q(gpu: StandInGpu) -> None:
    bshd = tensor(2, 8, 4, 64).transpose(1, 2)
    packed = tensor(2, 8, 3, 4, 64)[:, :, 0].transpose(1, 2)
    for q in (bshd, packed):
        for _ in range(2):  # the first call, and a held one
            assert forward(gpu, q=q)[0].stride() == bshd.stride()
            narrow = forward(gpu, q=q, v=tensor(2, 2, 9, 16))[0]
            assert (narrow.shape, narrow.stride()) == ((2, 4, 8, 16), (8 * 4 * 16, 16, 4 * 16, 1))
    expanded = forward(gpu, q=tensor(1, 1, 8, 64).expand(2, 4, 8, 64))[0]
    assert expanded.is_contiguous()


def test_a_tensor_whose_rows_are_not_contiguous_is_copied(gpu: StandInGpu) -> None:
    for _ in range(2):
        forward(gpu, k=tensor(2, 2, 64, 9).transpose(2, 3))
    assert hows(gpu) == ["jit", "held"]
    assert gpu.recorder.launches == []
    forward(gpu, v=tensor(2, 2, 9, 1).expand(2, 2, 9, 64))
    assert gpu.recorder.launches[0][2][2].stride(-1) == 1


def test_nothing_is_launched_for_empty_inputs(gpu: StandInGpu) -> None:
    nothing = {"q": tensor(0, 4, 8, 64), "k": tensor(0, 2, 9, 64), "v": tensor(0, 2, 9, 32)}
    for tensors, rows in ((nothing, (0, 4, 8)), ({"q": tensor(2, 4, 0, 64)}, (2, 4, 0))):
        out, lse = forward(gpu, **tensors)
        assert (out.shape[:3], lse.shape) == (rows, rows)
    out, lse = forward(gpu, k=tensor(2, 2, 0, 64), v=tensor(2, 2, 0, 32))
    assert (out.shape, lse.shape) == ((2, 4, 8, 32), (2, 4, 8))
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    empty = {"k": tensor(2, 2, 0, 64), "v": tensor(2, 2, 0, 32), "out": out, "dout": out}
    gradients = backward(gpu, **empty, lse=lse)
    assert [tuple(gradient.shape) for gradient in gradients] == [(2, 4, 8, 64), (2, 2, 0, 64), (2, 2, 0, 32)]
    assert (gradients[0] == 0).all()
    assert hows(gpu) == []


def test_bad_arguments_are_named_also_when_they_have_no_key(gpu: StandInGpu) -> None:
    forward(gpu)
    with pytest.raises(UnsupportedInputError, match=r"k: got list"):
        forward(gpu, k=[1.0])
    with pytest.raises(UnsupportedInputError, match="softmax_scale: got list"):
        forward(gpu, scale=[1.0])
    with pytest.raises(UnsupportedInputError, match="q: got a Tensor with layout torch"):
        forward(gpu, q=qkv()["q"].to_sparse())
    assert hows(gpu) == ["jit"]


def test_the_backward_launches_its_kernels_in_order_on_views_of_its_workspace(gpu: StandInGpu) -> None:
    backward(gpu)
    dout = tensor(2, 4, 8, 64)
    dq, dk, dv = backward(gpu, dout=dout)
    assert gpu.recorder.names() == [(kernel, how) for how in ("jit", "held") for kernel in ("delta", "dkdv", "dq")]
    first, again = gpu.recorder.launches[:3], gpu.recorder.launches[3:]
    for (_, _, before, scalars), (_, _, tensors, held_scalars) in zip(first, again, strict=True):
        assert [(t.shape, t.stride(), t.dtype) for t in tensors] == [(t.shape, t.stride(), t.dtype) for t in before]
        assert held_scalars == scalars
    delta, dkdv, dq_launch = (tensors for _, _, tensors, _ in again)
    assert delta[1].data_ptr() == dkdv[3].data_ptr() == dout.data_ptr()
    assert [t.data_ptr() for t in dkdv[4:6]] == [dk.data_ptr(), dv.data_ptr()]
    assert dq_launch[4].data_ptr() == dq.data_ptr()
    # What delta writes is what the others read: two parts of this call's workspace, one behind the other.
    assert (
        [t.data_ptr() for t in delta[3:]] == [t.data_ptr() for t in dkdv[6:]] == [t.data_ptr() for t in dq_launch[5:]]
    )
    assert delta[4].data_ptr() - delta[3].data_ptr() == 4 * delta[3].numel()


def test_the_backward_copies_rows_that_are_not_contiguous(gpu: StandInGpu) -> None:
    backward(gpu, dout=tensor(1).expand(2, 4, 8, 64))
    assert gpu.recorder.launches[0][2][1].stride(-1) == 1


def test_the_backward_copies_an_lse_that_is_not_contiguous(gpu: StandInGpu) -> None:
    backward(gpu, lse=torch.zeros(2, 8, 4).transpose(1, 2))
    assert gpu.recorder.launches[0][2][2].is_contiguous()


BACKWARD = {"dout": tensor(2, 4, 8, 64), **qkv(), "out": tensor(2, 4, 8, 64), "lse": torch.zeros(2, 4, 8)}


@pytest.mark.parametrize("name", BACKWARD)
def test_the_backward_holds_by_the_alignment_of_each_tensor(gpu: StandInGpu, name: str) -> None:
    backward(gpu)
    memory = torch.zeros(BACKWARD[name].numel() + 1, dtype=BACKWARD[name].dtype)
    backward(gpu, **{name: memory[1:].view(BACKWARD[name].shape)})
    assert hows(gpu) == ["jit"] * 6


@pytest.mark.parametrize("name", [name for name in BACKWARD if name != "lse"])
def test_the_backward_holds_by_the_strides_of_each_tensor(gpu: StandInGpu, name: str) -> None:
    backward(gpu)
    backward(gpu, **{name: BACKWARD[name].transpose(1, 2).contiguous().transpose(1, 2)})
    assert hows(gpu) == ["jit"] * 6


def test_a_forward_that_needs_a_backward_is_refused_when_there_is_none(gpu: StandInGpu) -> None:
    missing = AttentionSpec(pass_=Pass.BACKWARD, head_dim=64, head_dim_v=64, causal=False)
    gpu.kernels.missing = {missing}
    forward(gpu)
    with pytest.raises(KernelNotGeneratedError, match="backward_d64_full"):
        forward(gpu, needs_grad=True)
    assert hows(gpu) == ["jit"]


def test_the_memo_is_bounded(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "MEMO_LIMIT", 3)
    for scale in (0.1, 0.2, 0.3, 0.4, 0.5):
        forward(gpu, scale=scale)
        assert len(gpu.dispatcher._memo) <= 3
    hows(gpu)
    for scale in (0.5, 0.1):
        forward(gpu, scale=scale)
    assert hows(gpu) == ["held", "jit"]


def test_threads_share_one_first_call(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    load = gpu.kernels.load
    barrier = threading.Barrier(8)

    def load_slowly(variant: Variant) -> ModuleType:
        time.sleep(0.2)  # by then the others wait for the first one
        return load(variant)

    def call(_: int) -> None:
        barrier.wait()
        forward(gpu)

    monkeypatch.setattr(gpu.kernels, "load", load_slowly)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(8)))
    assert sorted(hows(gpu)) == ["held"] * 7 + ["jit"]

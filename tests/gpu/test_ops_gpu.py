"""attention() on a GPU: here the dispatcher is on trial, in corners of layout and in what only a GPU has (graphs,
streams, devices, forks); the kernels themselves are judged elsewhere, by the rules of the accuracy gate.
"""

import multiprocessing
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import attnforge
from attnforge import reference
from attnforge.dispatch.dispatcher import DISPATCHER
from attnforge.dispatch.errors import ColdCaptureError, KernelFallbackWarning
from attnforge.errors import UnsupportedInputError

pytestmark = pytest.mark.gpu
LIMITS = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def cold():
    """Nothing is held from another test, and every config runs."""
    attnforge.reload()
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelFallbackWarning)
        yield


def qkv(batch=2, heads=4, kv_heads=2, seqlen_q=200, seqlen_k=200, head_dim=64, dtype=torch.bfloat16, grad=False):
    draw = torch.Generator("cuda").manual_seed(seqlen_q + head_dim)
    shapes = ((heads, seqlen_q), (kv_heads, seqlen_k), (kv_heads, seqlen_k))
    return [
        torch.randn(batch, *shape, head_dim, generator=draw, device="cuda", dtype=dtype).requires_grad_(grad)
        for shape in shapes
    ]


def assert_right(out, q, k, v, causal=False):
    expected = reference.attention(q.detach(), k.detach(), v.detach(), causal=causal).out
    torch.testing.assert_close(out.double(), expected, atol=LIMITS[out.dtype], rtol=0)


def held():
    return len(DISPATCHER._memo)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [32, 80, 128, 256])
def test_first_and_held_calls_are_right_forward_and_backward(dtype, causal, head_dim):
    for seed in range(3):
        q, k, v = (t.detach().roll(seed, 2).requires_grad_() for t in qkv(head_dim=head_dim, dtype=dtype))
        out, lse = attnforge.attention(q, k, v, causal=causal, return_lse=True)
        assert_right(out, q, k, v, causal)
        assert lse.isfinite().all()
        dout = torch.randn_like(out)
        out.backward(dout)
        expected = reference.attention_backward(dout, q.detach(), k.detach(), v.detach(), causal=causal)
        for tensor, gradient in zip((q, k, v), expected, strict=True):
            torch.testing.assert_close(tensor.grad.double(), gradient, atol=5 * LIMITS[dtype], rtol=2e-2)
    assert held() == 2


def test_every_layout_is_right():
    q, k, v = qkv(heads=4, kv_heads=4)
    bshd = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    packed = torch.stack(bshd, 0).permute(1, 3, 0, 2, 4).contiguous().permute(2, 0, 3, 1, 4)
    padded = [torch.nn.functional.pad(t, (0, 8))[..., :64] for t in (q, k, v)]
    rows_apart = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v)]
    expanded = (q, k[:1, :1].expand_as(k), v[:1, :1].expand_as(v))
    for tensors in (bshd, packed.unbind(0), padded, rows_apart, expanded):
        for _ in range(2):
            assert_right(attnforge.attention(*tensors), *tensors)


@pytest.mark.parametrize("which", range(3))
def test_a_misaligned_tensor_is_right_after_an_aligned_one(which):
    tensors = qkv()
    attnforge.attention(*tensors)
    memory = torch.empty(tensors[which].numel() + 1, dtype=torch.bfloat16, device="cuda")
    tensors[which] = memory[1:].view(tensors[which].shape).copy_(tensors[which])
    assert tensors[which].data_ptr() % 16
    for _ in range(2):
        assert_right(attnforge.attention(*tensors), *tensors)


def test_offsets_past_two_to_the_31_are_right():
    small = qkv(batch=2, heads=1, kv_heads=1)
    far = []
    for tensor in small:
        memory = torch.empty(2**31 + 2**16, dtype=torch.bfloat16, device="cuda")
        far.append(memory.as_strided(tensor.shape, (2**31 + 64, *tensor.stride()[1:])).copy_(tensor))
    leaves = [t.requires_grad_() for t in far]
    out = attnforge.attention(*leaves)
    assert_right(out, *small)
    out.sum().backward()
    expected = reference.attention_backward(torch.ones_like(out), *small, causal=False)
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad.double(), gradient, atol=0.1, rtol=2e-2)


def test_one_token_and_one_key():
    for seqlen_q, seqlen_k in ((1, 1), (1, 300), (300, 1)):
        q, k, v = qkv(seqlen_q=seqlen_q, seqlen_k=seqlen_k)
        for causal in (False, True):
            assert_right(attnforge.attention(q, k, v, causal=causal), q, k, v, causal)


def test_a_warm_call_is_captured_and_replayed():
    tensors = [t.requires_grad_() for t in qkv()]
    dout = torch.randn_like(tensors[0])
    for _ in range(2):
        gradients = torch.autograd.grad(attnforge.attention(*tensors), tensors, dout)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attnforge.attention(*tensors)
        captured = torch.autograd.grad(out, tensors, dout)
    with torch.no_grad():
        for tensor, other in zip(tensors, qkv(), strict=True):
            tensor.copy_(other.roll(1, 2))
    graph.replay()
    assert_right(out, *tensors)
    gradients = torch.autograd.grad(attnforge.attention(*tensors), tensors, dout)
    for replayed, gradient in zip(captured, gradients, strict=True):
        assert torch.equal(replayed, gradient)


def test_a_cold_call_is_not_captured():
    q, k, v = qkv()
    with pytest.raises(ColdCaptureError, match="once before the capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        attnforge.attention(q, k, v)
    assert_right(attnforge.attention(q, k, v), q, k, v)


def test_the_current_stream_is_used():
    q, k, v = qkv()
    attnforge.attention(q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        doubled = 2 * q  # late: a launch on another stream would read what was there before
        out = attnforge.attention(doubled, k, v)
    stream.synchronize()
    assert_right(out, 2 * q, k, v)


def test_threads_get_their_own_results():
    every = [[t.roll(seed, 2) for t in qkv(seqlen_q=100 + seed % 3)] for seed in range(24)]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda tensors: attnforge.attention(*tensors), every))
    torch.cuda.synchronize()
    for out, tensors in zip(results, every, strict=True):
        assert_right(out, *tensors)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    tensors = qkv()
    elsewhere = [t.to("cuda:1").requires_grad_() for t in tensors]
    for _ in range(2):
        out = attnforge.attention(*elsewhere)
        out.sum().backward()
        assert out.device == torch.device("cuda:1")
        assert torch.cuda.current_device() == 0
        assert_right(out, *elsewhere)
    assert_right(attnforge.attention(*tensors), *tensors)
    with pytest.raises(UnsupportedInputError, match=r"k\.device: got cuda:1; supported: cuda:0"):
        attnforge.attention(tensors[0], elsewhere[1], elsewhere[2])


def test_saved_tensors_may_be_kept_on_the_cpu():
    gradients = []
    for keep in (False, True):
        bshd = [t.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in qkv()]
        with torch.autograd.graph.save_on_cpu() if keep else torch.enable_grad():
            out = attnforge.attention(*bshd, causal=True)
        gradients.append(torch.autograd.grad(out.float().square().sum(), bshd))
    for resident, kept in zip(*gradients, strict=True):
        assert torch.equal(resident, kept)


def test_torch_compile_and_a_compiled_backward():
    tensors = [t.requires_grad_() for t in qkv()]
    compiled = torch.compile(lambda q, k, v: 2 * attnforge.attention(q + 1, k, v))
    out = compiled(*tensors)
    eager = 2 * attnforge.attention(tensors[0] + 1, *tensors[1:])
    torch.testing.assert_close(out, eager, atol=2e-2, rtol=2e-2)
    for got, expected in zip(*(torch.autograd.grad(o.sum(), tensors) for o in (out, eager)), strict=True):
        torch.testing.assert_close(got, expected, atol=5e-2, rtol=5e-2)


def test_what_is_held_keeps_no_tensor_alive():
    def call():
        tensors = [t.requires_grad_() for t in qkv(dtype=torch.float16)]
        attnforge.attention(*tensors).sum().backward()

    call()
    attnforge.reload()
    before = torch.cuda.memory_allocated()
    call()
    assert held() == 2
    assert torch.cuda.memory_allocated() == before


def test_repeated_calls_are_bitwise_equal():
    tensors = [t.requires_grad_() for t in qkv(seqlen_q=1000, seqlen_k=1000)]
    dout = torch.randn_like(tensors[0])
    results = []
    for _ in range(3):
        out = attnforge.attention(*tensors, causal=True, deterministic=True)
        results.append((out, *torch.autograd.grad(out, tensors, dout)))
    for again in results[1:]:
        for first, other in zip(results[0], again, strict=True):
            assert torch.equal(first, other)


def _ask_in_child(connection):
    try:
        DISPATCHER._check_device_is_ready("any spec", torch.device("cuda", 0))
        connection.send("it would have launched")
    except Exception as error:
        connection.send(type(error).__name__)
    finally:
        os._exit(0)  # without Python's end, which would touch the parent's CUDA state


def test_a_forked_child_is_told_so():
    q, k, v = qkv()
    attnforge.attention(q, k, v)
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=_ask_in_child, args=(theirs,))
    child.start()
    assert ours.poll(60)
    assert ours.recv() == "ForkedProcessError"
    child.join(60)
    assert_right(attnforge.attention(q, k, v), q, k, v)


def test_a_profiler_of_tritons_sees_held_launches():
    from triton import knobs

    q, k, v = qkv()
    attnforge.attention(q, k, v)
    seen = []
    listener = lambda metadata: seen.append(metadata.get()["name"])  # noqa: E731 - a hook is removed by identity
    knobs.runtime.launch_enter_hook.add(listener)
    try:
        out = attnforge.attention(q, k, v)
    finally:
        knobs.runtime.launch_enter_hook.remove(listener)
    assert seen == ["forward_kernel"]
    assert_right(out, q, k, v)

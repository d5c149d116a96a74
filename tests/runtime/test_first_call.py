import logging
import os
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton import knobs
from triton.compiler import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from attnforge.cache.store import LoadedCache, Origin
from attnforge.codegen import AttentionSpec, Pass, Variant
from attnforge.dispatch import dispatcher
from attnforge.dispatch.errors import (
    ColdCaptureError,
    ForeignTensorError,
    ForkedProcessError,
    KernelFallbackWarning,
    NoWorkingConfigError,
)
from attnforge.problem import Bucket, Problem
from tests.runtime.cache.entries import a_cache, a_config, measured
from tests.runtime.calls import forward, hows, qkv
from tests.runtime.stand_ins import StandInGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandInGpu:
    return StandInGpu.install(monkeypatch)


def tuned(block_m: int) -> LoadedCache:
    """A cache with an entry for the call that forward() makes."""
    problem = Problem.of_tensors(**qkv())
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
    entry = measured(spec=spec, problem=problem, bucket=Bucket.of(problem), config=a_config(block_m))
    return LoadedCache(dispatcher.__file__, Origin.USER, a_cache(entry))  # type: ignore[arg-type]


def test_a_tuned_config_is_used_and_a_new_one_after_reload(gpu: StandInGpu) -> None:
    gpu.caches.append(tuned(16))
    forward(gpu)
    gpu.caches[:] = [tuned(256)]
    forward(gpu)
    gpu.dispatcher.reload()
    forward(gpu)
    assert [variant.config.block_m for variant in gpu.kernels.loaded] == [16, 256]  # type: ignore[attr-defined]
    assert hows(gpu) == ["jit", "held", "jit"]


def test_every_decision_is_logged(gpu: StandInGpu, caplog: pytest.LogCaptureFixture) -> None:
    gpu.caches.append(tuned(16))
    with caplog.at_level(logging.DEBUG, "attnforge"):
        forward(gpu)
        forward(gpu)
    (record,) = caplog.records
    assert "portable/forward_d64_full/m16_n64_w8_s3_chunks" in record.getMessage()
    assert "measured for its bucket float16_bh8_q8_k16" in record.getMessage()


RESOURCES = OutOfResources(300000, 232448, "shared memory")


@pytest.mark.parametrize(
    "failure",
    [
        RESOURCES,
        PTXASError("too many registers"),
        CompilationError("", None, "no"),
        RuntimeError("PassManager::run failed"),
    ],
)
def test_a_config_that_does_not_run_falls_back_to_the_default_with_one_warning(
    gpu: StandInGpu, failure: Exception
) -> None:
    gpu.caches.append(tuned(16))
    tuned_variant = gpu.caches[0].cache.entries[0].variant
    gpu.kernels.failures = lambda variant: failure if variant == tuned_variant else None
    with pytest.warns(KernelFallbackWarning, match=r"m16_n64_w8_s3_chunks does not run on sm_90") as caught:
        out, _ = forward(gpu)
    assert len(caught) == 1
    assert out.shape == (2, 4, 8, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward(gpu)
        forward(gpu, scale=0.5)  # another key: the failure is remembered
    assert gpu.kernels.loaded.count(tuned_variant) == 1
    assert hows(gpu) == ["jit", "held", "jit"]


def test_smaller_defaults_are_tried_until_one_runs(gpu: StandInGpu) -> None:
    gpu.kernels.failures = lambda variant: RESOURCES if variant.config.block_m > 32 else None  # type: ignore[attr-defined]
    tensors = {name: t.float() for name, t in qkv().items()}
    with pytest.warns(KernelFallbackWarning):
        forward(gpu, **tensors)
    assert gpu.kernels.loaded[-1].config.block_m <= 32  # type: ignore[attr-defined]


def test_when_nothing_runs_the_error_names_the_last_failure(gpu: StandInGpu) -> None:
    gpu.kernels.failures = lambda variant: RESOURCES
    with (
        pytest.warns(KernelFallbackWarning),
        pytest.raises(NoWorkingConfigError, match=r"forward_d64_full.*shared memory"),
    ):
        forward(gpu)


def test_an_error_that_is_not_of_the_config_is_raised_as_it_is(gpu: StandInGpu) -> None:
    gpu.kernels.failures = lambda variant: RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        forward(gpu)
    assert len(gpu.kernels.loaded) == 1


def test_a_plan_that_uses_a_foreign_tensor_is_refused(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    load = gpu.kernels.load

    def load_faulty(variant: Variant) -> Any:
        module = load(variant)
        plan = module.plan

        def faulty(*arguments: Any) -> Any:
            ((kernel, grid, tensors, scalars, options),) = plan(*arguments)
            return [(kernel, grid, (tensors[0].clone(), *tensors[1:]), scalars, options)]

        module.plan = faulty  # type: ignore[attr-defined]
        return module

    monkeypatch.setattr(gpu.kernels, "load", load_faulty)
    with pytest.raises(ForeignTensorError, match="uses a tensor that it was not given"):
        forward(gpu)
    assert hows(gpu) == []


def test_a_profilers_hooks_are_served(gpu: StandInGpu) -> None:
    forward(gpu)
    listener = lambda metadata: None  # noqa: E731 - a hook is removed by identity
    knobs.runtime.launch_enter_hook.add(listener)
    try:
        forward(gpu)
    finally:
        knobs.runtime.launch_enter_hook.remove(listener)
    forward(gpu)
    assert hows(gpu) == ["jit", "hooked", "held"]


def test_a_cold_call_under_graph_capture_is_refused_and_a_warm_one_works(
    gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tensors are on the CPU; the check looks at the device's type only.
    ready = gpu.dispatcher._check_device_is_ready
    monkeypatch.setattr(
        gpu.dispatcher, "_check_device_is_ready", lambda spec, device: ready(spec, SimpleNamespace(type="cuda"))
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    forward(gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    forward(gpu)
    with pytest.raises(ColdCaptureError, match=r"forward_d64_full.*make the same call .* once before the capture"):
        forward(gpu, scale=0.5)
    assert hows(gpu) == ["jit", "held"]


def test_a_child_forked_after_cuda_was_used_is_refused(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    forward(gpu)
    ready = gpu.dispatcher._check_device_is_ready
    monkeypatch.setattr(
        gpu.dispatcher, "_check_device_is_ready", lambda spec, device: ready(spec, SimpleNamespace(type="cuda"))
    )
    gpu.dispatcher.after_fork(parent_used_cuda=True)
    with pytest.raises(ForkedProcessError, match="spawn"):
        forward(gpu)


@pytest.mark.parametrize("used", [True, False])
def test_a_fork_is_noticed(monkeypatch: pytest.MonkeyPatch, used: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    read_end, write_end = os.pipe()
    dispatcher.DISPATCHER._memo[("a key",)] = None  # type: ignore[assignment]
    child = os.fork()
    if child == 0:
        told = f"{dispatcher.DISPATCHER._forked_from_cuda} {len(dispatcher.DISPATCHER._memo)}"
        os.write(write_end, told.encode())
        os._exit(0)
    os.waitpid(child, 0)
    dispatcher.DISPATCHER._memo.clear()
    assert os.read(read_end, 100) == f"{used} 0".encode()
    assert not dispatcher.DISPATCHER._forked_from_cuda

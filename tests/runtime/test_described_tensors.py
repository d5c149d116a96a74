"""Launches whose plan() passes TMA descriptors of its arguments, as the hopper schedule's does."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from attnforge.cache.store import LoadedCache, Origin
from attnforge.codegen import AttentionSpec, Pass, Variant
from attnforge.dispatch.errors import ForeignTensorError
from attnforge.problem import Bucket, Problem
from tests.runtime.cache.entries import a_cache, a_config, measured
from tests.runtime.calls import forward, hows, qkv
from tests.runtime.stand_ins import StandInGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandInGpu:
    return StandInGpu.install(monkeypatch)


def describe(tensor: torch.Tensor) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout.get_default_for([1, 1, 64, 64], gl.float16)
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, 1, 64, 64], layout)


def with_plan(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Every module's plan() passes its tensors through ``change``."""
    load = gpu.kernels.load

    def load_changed(variant: Variant) -> Any:
        module = load(variant)
        plan = module.plan

        def changed(*arguments: Any) -> Any:
            ((kernel, grid, tensors, scalars, options),) = plan(*arguments)
            return [(kernel, grid, change(tensors), scalars, options)]

        module.plan = changed  # type: ignore[attr-defined]
        return module

    monkeypatch.setattr(gpu.kernels, "load", load_changed)


def test_a_held_launch_describes_the_tensors_of_each_call(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    with_plan(gpu, monkeypatch, lambda tensors: (*map(describe, tensors[:3]), *tensors[3:]))
    calls = [qkv(), qkv()]
    results = [forward(gpu, **call) for call in calls]
    assert [how for _, how, _, _ in gpu.recorder.launches] == ["jit", "held"]
    for call, (out, _), (_, _, tensors, _) in zip(calls, results, gpu.recorder.launches, strict=True):
        for (_, given), described in zip(call.items(), tensors[:3], strict=True):
            assert described.base.data_ptr() == given.data_ptr()
            assert described == describe(described.base)
        assert tensors[3].data_ptr() == out.data_ptr()


def test_a_descriptor_of_a_foreign_tensor_is_refused(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    with_plan(gpu, monkeypatch, lambda tensors: (describe(tensors[0].clone()), *tensors[1:]))
    with pytest.raises(ForeignTensorError):
        forward(gpu)


def test_a_layout_that_a_plan_refuses_goes_to_another_config(
    gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = iter(["q has strides that TMA cannot take"])

    def refuse_once(tensors: Any) -> Any:
        for refusal in refusals:
            raise ValueError(refusal)
        return tensors

    problem = Problem.of_tensors(**qkv())
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
    entry = measured(spec=spec, problem=problem, bucket=Bucket.of(problem), config=a_config(16))
    gpu.caches.append(LoadedCache(Path("tuned.yaml"), Origin.USER, a_cache(entry)))
    with_plan(gpu, monkeypatch, refuse_once)
    with caplog.at_level(logging.DEBUG, "attnforge"):
        forward(gpu)
    assert "TMA cannot take" in caplog.text
    assert [variant.config == a_config(16) for variant in gpu.kernels.loaded] == [True, False]
    assert hows(gpu) == ["jit"]
    forward(gpu, q=torch.zeros(2, 4, 16, 64, dtype=torch.float16))
    assert gpu.kernels.loaded[-1].config == a_config(16), "for another layout it stays in office"

"""Launches whose plan() passes TMA descriptors of its arguments, as the hopper schedule's does."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from attnforge.cache.schema import TunedEntry
from attnforge.cache.store import LoadedCache, Origin
from attnforge.codegen import AttentionSpec, DType, Limits, Pass, Schedule, Variant, schedule_of
from attnforge.codegen import schedules as codegen_schedules
from attnforge.dispatch.errors import ForeignTensorError
from attnforge.problem import Bucket, Problem
from tests.runtime.cache.entries import a_cache, a_config, measured
from tests.runtime.calls import forward, hows, qkv
from tests.runtime.stand_ins import StandInGpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandInGpu:
    monkeypatch.setattr("attnforge.dispatch.decision.LEAST_OPERATIONS", {})  # the calls here are tiny
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


def hopper_entry(problem: Problem) -> TunedEntry:
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
    config = schedule_of(Schedule.HOPPER, Pass.FORWARD).default(spec, DType.FP16, Limits("sm_90", 232448))
    return measured(spec=spec, problem=problem, bucket=Bucket.of(problem), schedule=Schedule.HOPPER, config=config)


@pytest.fixture
def strict_hopper(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hopper modules that refuse every call of one key's length: the layout is known to plan() alone."""
    load = gpu.kernels.load

    def load_strict(variant: Variant) -> Any:
        module = load(variant)
        plan = module.plan

        def strict(*arguments: Any) -> Any:
            if variant.schedule is Schedule.HOPPER and arguments[0].shape[2] == 8:
                raise ValueError("q has strides that TMA cannot take")
            return plan(*arguments)

        module.plan = strict  # type: ignore[attr-defined]
        return module

    monkeypatch.setattr(gpu.kernels, "load", load_strict)


def schedules(gpu: StandInGpu) -> list[str]:
    return [str(variant.schedule) for variant in gpu.kernels.loaded]


@pytest.mark.usefixtures("strict_hopper")
def test_a_layout_that_a_plan_refuses_goes_to_another_schedule(
    gpu: StandInGpu, caplog: pytest.LogCaptureFixture
) -> None:
    entry = hopper_entry(Problem.of_tensors(**qkv()))
    gpu.caches.append(LoadedCache(Path("tuned.yaml"), Origin.USER, a_cache(entry)))
    with caplog.at_level(logging.DEBUG, "attnforge"), warnings.catch_warnings():
        warnings.simplefilter("error")
        forward(gpu)
    assert "TMA cannot take" in caplog.text
    assert "hopper aside: the default config" in caplog.text
    assert schedules(gpu) == ["hopper", "portable"]
    assert hows(gpu) == ["jit"]
    forward(gpu, q=torch.zeros(2, 4, 16, 64, dtype=torch.float16))
    assert gpu.kernels.loaded[-1] == entry.variant, "for another layout it stays in office"


@pytest.mark.usefixtures("strict_hopper")
def test_a_refused_layout_gets_the_tuned_config_of_another_schedule(gpu: StandInGpu) -> None:
    """The next bucket's portable entry, not the default; and never a second config of the schedule that refused."""
    problem = Problem.of_tensors(**qkv())
    wider = structs.replace(problem, seqlen_k=2 * problem.seqlen_k)
    entries = [
        hopper_entry(problem),
        hopper_entry(wider),
        measured(spec=hopper_entry(problem).spec, problem=wider, bucket=Bucket.of(wider), config=a_config(16)),
    ]
    gpu.caches += [LoadedCache(Path(f"{i}.yaml"), Origin.USER, a_cache(entry)) for i, entry in enumerate(entries)]
    forward(gpu)
    assert schedules(gpu) == ["hopper", "portable"]
    assert gpu.kernels.loaded[-1].config == a_config(16)


@pytest.mark.usefixtures("strict_hopper")
def test_a_preferred_default_gives_way_to_the_portable_one(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen_schedules, "preferred_schedule", lambda *_: Schedule.HOPPER)
    forward(gpu)
    forward(gpu)
    assert schedules(gpu) == ["hopper", "portable"]
    assert hows(gpu) == ["jit", "held"], "the refusal is not asked for again"
    forward(gpu, q=torch.zeros(2, 4, 16, 64, dtype=torch.float16))
    assert schedules(gpu)[2:] == ["hopper"]

"""A GPU that is not there: modules whose kernels record their launches, and what the dispatcher asks CUDA for.

Tensors are on the CPU. A stand-in module keeps the protocol of rendered ones: plan(...) and workspace_shape(q).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from attnforge.cache.store import LoadedCache
from attnforge.codegen import AttentionSpec, Pass, Variant
from attnforge.dispatch import dispatcher, launch
from attnforge.dispatch.dispatcher import Dispatcher
from attnforge.dispatch.surroundings import Surroundings
from attnforge.errors import KernelNotGeneratedError
from attnforge.target import Target

SM_90 = Target.for_arch("sm_90")


@dataclass
class Recorder:
    """Every launch: (kernel, how, tensors, scalars), where ``how`` is "jit", "held" or "hooked"."""

    launches: list[tuple[str, str, tuple[torch.Tensor, ...], tuple[Any, ...]]] = field(default_factory=list)

    def names(self) -> list[tuple[str, str]]:
        return [(kernel, how) for kernel, how, _, _ in self.launches]


class StandInKernel:
    """A JITFunction, and the CompiledKernel that it gives."""

    def __init__(self, name: str, tensors: int, recorder: Recorder, failure: Exception | None = None) -> None:
        self.name = name
        self.function = f"handle of {name}"
        self.packed_metadata = f"metadata of {name}"
        self._tensors = tensors
        self._recorder = recorder
        self._failure = failure

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., Any]:
        assert len(grid) == 3

        def launch_it(*arguments: Any, **options: Any) -> Any:
            if self._failure is not None:
                raise self._failure
            self._record("jit" if options else "hooked", arguments)
            return self

        return launch_it

    def run(self, x: int, y: int, z: int, stream: int, function: str, metadata: str, *rest: Any) -> None:
        assert (stream, function, metadata) == (7, self.function, self.packed_metadata)
        assert rest[:3] == (None, None, None)
        self._record("held", rest[3:])

    def _record(self, how: str, arguments: tuple[Any, ...]) -> None:
        tensors, scalars = arguments[: self._tensors], arguments[self._tensors :]
        assert all(isinstance(getattr(tensor, "base", tensor), torch.Tensor) for tensor in tensors)
        assert not any(isinstance(scalar, torch.Tensor) for scalar in scalars)
        # A held launch takes a descriptor's tensor from it afterwards.
        tensors = tuple(each if isinstance(each, torch.Tensor) else copy.copy(each) for each in tensors)
        self._recorder.launches.append((self.name, how, tensors, scalars))
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.dtype is torch.float32 and tensor.dim() == 3:
                tensor.fill_(len(self._recorder.launches))


def stand_in_module(variant: Variant, recorder: Recorder, failure: Exception | None = None) -> ModuleType:
    """A module of the variant's pass; ``failure`` is what its first kernel raises when it is launched."""
    module = ModuleType(f"stand_in.{variant.name}")
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}

    def plan_forward(*arguments: Any) -> list[Any]:
        *tensors, scale = arguments
        return [(forward, (2, 1, 1), tuple(tensors), (*tensors[0].stride()[:3], scale, True), options)]

    def plan_backward(*arguments: Any) -> list[Any]:
        dout, q, k, v, out, lse, dq, dk, dv, workspace, scale = arguments
        rows, sums = workspace
        return [
            (delta, (1, 1, 1), (out, dout, lse, rows, sums), (3,), options),
            (dkdv, (1, 1, 1), (q, k, v, dout, dk, dv, rows, sums), (scale,), options),
            (dq_kernel, (1, 1, 1), (q, k, v, dout, dq, rows, sums), (scale, False), options),
        ]

    if variant.spec.pass_ is Pass.FORWARD:
        forward = StandInKernel("forward", 5, recorder, failure)
        module.plan = plan_forward  # type: ignore[attr-defined]
    else:
        delta = StandInKernel("delta", 5, recorder, failure)
        dkdv, dq_kernel = StandInKernel("dkdv", 8, recorder), StandInKernel("dq", 7, recorder)
        module.plan = plan_backward  # type: ignore[attr-defined]
        module.workspace_shape = lambda q: (2, *q.shape[:3])  # type: ignore[attr-defined]
    return module


class StandInKernels:
    """In the place of attnforge.kernels.Kernels; every spec is generated but for those in ``missing``."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.loaded: list[Variant] = []
        self.missing: set[AttentionSpec] = set()
        self.failures: Callable[[Variant], Exception | None] = lambda variant: None

    def load(self, variant: Variant) -> ModuleType:
        self.loaded.append(variant)
        return stand_in_module(variant, self.recorder, self.failures(variant))

    def check_generated(self, spec: AttentionSpec) -> None:
        if spec in self.missing:
            raise KernelNotGeneratedError(spec, "attnforge generate")


@dataclass
class StandInGpu:
    """A dispatcher of its own, whose GPU is the CPU."""

    dispatcher: Dispatcher
    kernels: StandInKernels
    caches: list[LoadedCache]
    """What is read as tuned caches at the next reload."""

    @property
    def recorder(self) -> Recorder:
        return self.kernels.recorder

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> StandInGpu:
        kernels, caches = StandInKernels(), list[LoadedCache]()

        def read() -> Surroundings:
            store = SimpleNamespace(load=lambda target: tuple(caches))
            surroundings = Surroundings(kernels=kernels, store=store, interpreted=False)  # type: ignore[arg-type]
            surroundings._targets[torch.device("cpu")] = SM_90
            return surroundings

        def check_arguments(*arguments: Any, interpreted: bool, **options: Any) -> None:
            assert not interpreted
            dispatcher_check(*arguments, interpreted=True, **options)  # CPU tensors pass

        dispatcher_check = dispatcher.check_arguments
        monkeypatch.setattr(dispatcher, "check_arguments", check_arguments)
        stream = SimpleNamespace(active=SimpleNamespace(get_current_stream=lambda index: 7))
        monkeypatch.setattr(launch, "driver", stream)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # the index of torch.device("cpu")
        monkeypatch.setattr(torch.cuda, "device", partial(nullcontext))
        return cls(Dispatcher(read), kernels, caches)

"""The GPU of this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import torch
import triton
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from attnforge.bench.timing import CudaTimer
from attnforge.cache.schema import Conditions
from attnforge.codegen import AttentionSpec, DType, Pass, Variant
from attnforge.compilation import Failure, FailureKind
from attnforge.kernels import load
from attnforge.problem import Problem
from attnforge.target import Target
from attnforge.tuner import benchmark
from attnforge.tuner.accuracy import PreparedCase, check, gate, gate_cases, launch_of, prepare
from attnforge.tuner.gpu_monitor import GpuMonitor
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.messages import Accurate, Comparison, Identity, NoDevice

COMPARISON_MS = 200.0
"""GPU time of one worker's comparison, within the bounds of rounds."""
LEAST_ROUNDS, MOST_ROUNDS = 16, 32
"""On an invented GPU with heavy tails a gain of 5 % is found in 90 % of sessions with 12 rounds, in 95 % with 16."""


@dataclass
class GpuDevice:
    """One GPU, through torch."""

    index: int = 0

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda", self.index)

    def identify(self) -> Identity | NoDevice:
        """The GPU and the versions that run on it. Opens it: a GPU that is lost may still tell its properties."""
        if not torch.cuda.is_available():
            return NoDevice("torch sees no GPU on this machine")
        torch.zeros(1, device=self._device)
        torch.cuda.synchronize(self._device)
        target, devices = Target.of_device(self._device), torch.cuda.device_count()
        return Identity(target, triton.__version__, str(torch.__version__), devices, self._uuid)

    def measure(self, variant: Variant, problem: Problem, best_ms: dict[str, float]) -> Measurement | Failure:
        """Check on whole blocks, which run the very kernels that are then timed; a tail would compile others."""
        group = problem.heads // problem.kv_heads
        failure = _failure_on_whole_blocks(variant, problem.dtype, group, self._device)
        if failure is not None:
            return failure
        kernels, launches = self._held_launches(variant, problem)
        return benchmark.measure(benchmark.CudaStopwatch(launches, self._flush), kernels, best_ms)

    def compare(
        self, variants: Sequence[Variant], problem: Problem, seed: int, own_processes: Sequence[int]
    ) -> Comparison | Failure:
        """Time variants in turns, in rounds of random order."""
        calls = {}
        for variant in variants:
            _, launches = self._held_launches(variant, problem)
            calls[variant.name] = _in_order(launches)
        timer = CudaTimer(self._device, COMPARISON_MS, LEAST_ROUNDS, MOST_ROUNDS, seed)
        timer.round(list(calls), calls)  # so that clocks are read under load: an idle GPU's are low
        before = self._monitor and self._monitor.state(own_processes)
        rounds_ms = timer.measure(calls)
        after = self._monitor and self._monitor.state(own_processes)
        conditions = Conditions(before=before, after=after) if before and after else None
        return Comparison(tuple(tuple(rounds_ms[variant.name]) for variant in variants), conditions)

    def check(self, variant: Variant, dtype: DType) -> Accurate | Failure:
        """The whole gate: tails, rows that see nothing, and what else it has."""
        report = gate(_module(variant), variant.spec, dtype, self._device)
        return Accurate() if report.ok else Failure(FailureKind.ACCURACY, report.message)

    def kind_of(self, error: Exception) -> FailureKind:
        """What sort of failure an exception of torch or triton is."""
        if isinstance(error, OutOfResources | torch.cuda.OutOfMemoryError):
            return FailureKind.RESOURCES
        if isinstance(error, CompilationError | PTXASError):
            return FailureKind.COMPILE
        return FailureKind.LAUNCH

    def is_usable(self) -> bool:
        """Whether the context has survived."""
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError:
            return False
        return True

    @cached_property
    def _monitor(self) -> GpuMonitor | None:
        return GpuMonitor.of_gpu(self._uuid)

    @property
    def _uuid(self) -> str:
        return f"GPU-{torch.cuda.get_device_properties(self._device).uuid}"

    @cached_property
    def _flush(self) -> torch.Tensor:
        """Written over to push everything else out of the L2: four times its size."""
        l2_bytes = torch.cuda.get_device_properties(self._device).L2_cache_size
        return torch.empty(max(4 * l2_bytes, 64 << 20), dtype=torch.int8, device=self._device)

    def _held_launches(self, variant: Variant, problem: Problem) -> tuple[list[str], list[Callable[[], object]]]:
        """The names of a variant's kernels, and calls that launch them; each has run once."""
        names, launches = [], []
        for kernel, grid, tensors, scalars, options in self._plan(variant, problem):
            compiled = kernel[grid](*tensors, *scalars, **options)
            names.append(kernel.__name__.removesuffix("_kernel"))
            launches.append(_held(compiled[grid], (*tensors, *scalars)))
        torch.cuda.synchronize(self._device)
        return names, launches

    def _plan(self, variant: Variant, problem: Problem) -> list[Any]:
        module, tensors = _module(variant), _tensors(variant.spec, problem, self._device)
        softmax_scale = variant.spec.head_dim**-0.5
        if variant.spec.pass_ is Pass.FORWARD:
            return list(module.plan(*tensors, softmax_scale))
        q = tensors[1]
        workspace = torch.empty(module.workspace_shape(q), dtype=torch.float32, device=q.device)
        return list(module.plan(*tensors, workspace, softmax_scale))


def _held(launch: Callable[..., object], arguments: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: launch(*arguments)


def _in_order(launches: Sequence[Callable[[], object]]) -> Callable[[], object]:
    def call() -> None:
        for launch in launches:
            launch()

    return call


@lru_cache(maxsize=16)
def _module(variant: Variant) -> ModuleType:
    return load(variant)


@lru_cache(maxsize=8)
def _whole_blocks(spec: AttentionSpec, dtype: DType, group: int, device: torch.device) -> PreparedCase:
    """The gate's case without tails, with as many heads to a kv head as are timed: kernels are compiled for that."""
    kv_heads = 2 if group == 1 else 1
    return prepare(replace(gate_cases(spec, dtype)[0], heads=group * kv_heads, kv_heads=kv_heads), device)


@lru_cache(maxsize=64)
def _failure_on_whole_blocks(variant: Variant, dtype: DType, group: int, device: torch.device) -> Failure | None:
    """Once a config, not once a bucket: what is checked does not depend on the problem's sizes."""
    repeats = 2 if variant.is_deterministic else 1
    report = check(launch_of(_module(variant)), _whole_blocks(variant.spec, dtype, group, device), repeats)
    return None if report.ok else Failure(FailureKind.ACCURACY, report.message)


@lru_cache(maxsize=1)
def _tensors(spec: AttentionSpec, problem: Problem, device: torch.device) -> tuple[torch.Tensor, ...]:
    """What a plan takes, but for the workspace: random values like a real call's, for what they are costs power."""
    dtype = getattr(torch, problem.dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    rows = (problem.batch, problem.heads, problem.seqlen_q)
    keys = (problem.batch, problem.kv_heads, problem.seqlen_k)
    q, k, v = normal(*rows, spec.head_dim), normal(*keys, spec.head_dim), normal(*keys, spec.head_dim_v)
    # Scores of normal q and k are normal, so each row's sum of exponentials is about seqlen_k * e^(1/2).
    lse = torch.full(rows, math.log(problem.seqlen_k) + 0.5, dtype=torch.float32, device=device)
    out = normal(*rows, spec.head_dim_v) * problem.seqlen_k**-0.5
    if spec.pass_ is Pass.FORWARD:
        return q, k, v, out, lse
    return normal(*rows, spec.head_dim_v), q, k, v, out, lse, *map(torch.empty_like, (q, k, v))

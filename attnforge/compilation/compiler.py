"""Compiles a variant's kernels for a target, with or without a GPU of that kind, and reports what they need."""

from __future__ import annotations

import io
import os
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from triton import knobs

from attnforge.codegen import AttentionSpec, Variant
from attnforge.compilation.offline_driver import compiling_for
from attnforge.compilation.outcome import CompileReport, Failure, FailureKind, KernelReport
from attnforge.compilation.representative import Launch, representative_plan
from attnforge.compilation.resources import Resources, read_amdgcn, read_ptxas_log
from attnforge.kernels import load
from attnforge.problem import Problem
from attnforge.target import Target

TENSOR_MEMORY_COLUMNS = 512
"""Of a Blackwell SM; triton compiles past it, and fails at the launch."""
PTXAS_LOG = "attnforge-ptxas.log"
"""Beside a compiled kernel in triton's cache: ptxas' words are not kept by triton, and running it again takes as long
as it took."""


def compile_variant(variant: Variant, problem: Problem, target: Target) -> CompileReport | Failure:
    """Render, load and compile a variant for what ``problem`` would launch on ``target``.

    What is compiled goes to triton's on-disk cache under the key that a real launch looks up. Not thread-safe, and
    without a deadline: a CompilePool has both.
    """
    started = time.perf_counter()
    try:
        module = load(variant)
    except Exception as error:  # whatever a template or its module can raise is this variant's failure, told in full
        return Failure(FailureKind.COMPILE, f"its module does not load: {type(error).__name__}: {error}")
    return compile_module(module, variant.spec, problem, target, started)


def compile_module(
    module: ModuleType, spec: AttentionSpec, problem: Problem, target: Target, started: float | None = None
) -> CompileReport | Failure:
    """Compile what a loaded, rendered module would launch; ``started`` is when its loading began (perf_counter)."""
    started = time.perf_counter() if started is None else started
    reports = []
    with compiling_for(target.triton_target()):
        try:
            for launch in representative_plan(module, spec, problem):
                reports.append(_compile_kernel(launch))
        except Exception as error:  # triton raises a dozen types, RuntimeError and AssertionError among them
            return Failure(FailureKind.COMPILE, f"{type(error).__name__}: {error}")
    report = CompileReport(tuple(kernel for kernel, _ in reports), time.perf_counter() - started)
    excess = [reason for kernel, tensor_memory in reports for reason in _excess(kernel, tensor_memory, target)]
    return Failure(FailureKind.RESOURCES, "; ".join(excess)) if excess else report


def _compile_kernel(launch: Launch) -> tuple[KernelReport, int]:
    """A kernel's report, and its columns of tensor memory."""
    kernel, grid, tensors, scalars, options = launch
    compiled, log = _warm_up(kernel, grid, (*tensors, *scalars), options)
    resources = _resources(compiled, log)
    if resources is None:  # compiled by someone else, who kept no log
        with knobs.compilation.scope():
            knobs.compilation.always_compile = True
            kernel.device_caches.clear()
            compiled, log = _warm_up(kernel, grid, (*tensors, *scalars), options)
        resources = _resources(compiled, log)
        assert resources is not None
    report = KernelReport(
        name=compiled.metadata.name,
        shared_bytes=compiled.metadata.shared,
        registers=resources.registers,
        spill_bytes=resources.spill_bytes,
        serialised=resources.serialised,
    )
    return report, getattr(compiled.metadata, "tmem_size", None) or 0


def _warm_up(kernel: Any, grid: object, arguments: tuple[Any, ...], options: Any) -> tuple[Any, str]:
    """The compiled kernel, and what ptxas said; nothing when the kernel came from the cache."""
    log = io.StringIO()
    with knobs.nvidia.scope(), redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        compiled = kernel.warmup(*arguments, grid=grid, **options)
    return compiled, log.getvalue()


def _resources(compiled: Any, log: str) -> Resources | None:
    """None when ptxas' log is needed and neither at hand nor kept."""
    if "amdgcn" in compiled.asm:
        return read_amdgcn(compiled.asm["amdgcn"])
    kept = next(Path(path) for name, path in compiled.metadata_group.items() if name.endswith(".json"))
    kept = kept.with_name(PTXAS_LOG)
    if not log.strip():
        return read_ptxas_log(kept.read_text()) if kept.exists() else None
    resources = read_ptxas_log(log)
    temporary = kept.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(log)
    temporary.replace(kept)
    return resources


def _excess(kernel: KernelReport, tensor_memory: int, target: Target) -> list[str]:
    """What a kernel needs beyond its target: triton checks it at the launch only."""
    reasons = []
    if kernel.shared_bytes > target.shared_memory:
        reasons.append(
            f"{kernel.name} needs {kernel.shared_bytes} bytes of shared memory, {target.arch} has"
            f" {target.shared_memory} per block"
        )
    if tensor_memory > TENSOR_MEMORY_COLUMNS:
        reasons.append(
            f"{kernel.name} needs {tensor_memory} columns of tensor memory, {target.arch} has {TENSOR_MEMORY_COLUMNS}"
        )
    return reasons

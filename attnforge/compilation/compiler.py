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
from attnforge.compilation.resources import read_amdgcn, read_ptxas_log
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
    try:
        module = load(variant)
    except Exception as error:  # whatever a template or its module can raise is this variant's failure, told in full
        return Failure(FailureKind.COMPILE, f"its module does not load: {type(error).__name__}: {error}")
    return compile_module(module, variant.spec, problem, target)


def compile_module(
    module: ModuleType, spec: AttentionSpec, problem: Problem, target: Target
) -> CompileReport | Failure:
    """The same for a rendered module that is loaded already."""
    started = time.perf_counter()
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
    kernel = launch[0]
    compiled, log = _warm_up(launch)
    if "amdgcn" in compiled.asm:
        resources = read_amdgcn(compiled.asm["amdgcn"])
    else:
        if not log:
            log = _kept_log(compiled)
        if not log:  # compiled by someone else, who kept no log: once more
            kernel.device_caches.clear()
            with knobs.compilation.scope():
                knobs.compilation.always_compile = True
                compiled, log = _warm_up(launch)
        resources = read_ptxas_log(log)
        _keep_log(compiled, log)
    report = KernelReport(
        name=compiled.metadata.name,
        shared_bytes=compiled.metadata.shared,
        registers=resources.registers,
        spill_bytes=resources.spill_bytes,
        serialised=resources.serialised,
    )
    return report, getattr(compiled.metadata, "tmem_size", None) or 0


def _warm_up(launch: Launch) -> tuple[Any, str]:
    """The compiled kernel, and what ptxas said; nothing when the kernel came from the cache."""
    kernel, grid, tensors, scalars, options = launch
    log = io.StringIO()
    with knobs.nvidia.scope(), redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        compiled = kernel.warmup(*tensors, *scalars, grid=grid, **options)
    return compiled, log.getvalue().strip()


def _log_path(compiled: Any) -> Path:
    metadata = next(path for name, path in compiled.metadata_group.items() if name.endswith(".json"))
    return Path(metadata).with_name(PTXAS_LOG)


def _kept_log(compiled: Any) -> str:
    """What ptxas said when the kernel was compiled; empty when that was not kept."""
    try:
        return _log_path(compiled).read_text()
    except FileNotFoundError:
        return ""


def _keep_log(compiled: Any, log: str) -> None:
    path = _log_path(compiled)
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(log)
        temporary.replace(path)


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

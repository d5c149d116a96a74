import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import triton
from triton.runtime.driver import driver

from attnforge.codegen import AttentionSpec, DType, Pass
from attnforge.compilation import CompileReport, Failure, FailureKind, compile_module
from attnforge.compilation.compiler import PTXAS_LOG
from attnforge.compilation.offline_driver import OfflineDriver, compiling_for
from attnforge.problem import Problem
from attnforge.target import Target
from tests.compilation import faulty_stand_ins, stand_in

SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
PROBLEM = Problem(batch=1, heads=1, kv_heads=1, seqlen_q=128, seqlen_k=256, dtype=DType.FP16)
SM_80 = Target.for_arch("sm_80")


@pytest.fixture(autouse=True)
def triton_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache on disk, and none in memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    stand_in.scores_kernel.device_caches.clear()
    yield tmp_path
    stand_in.scores_kernel.device_caches.clear()


def entries(cache: Path) -> dict[str, int]:
    """Every file of the cache, with when it was written."""
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120", "gfx942"])
def test_reports_what_each_kernel_needs(arch: str) -> None:
    report = compile_module(stand_in, SPEC, PROBLEM, Target.for_arch(arch))
    assert isinstance(report, CompileReport), report
    (kernel,) = report.kernels
    assert kernel.name == "scores_kernel"
    assert kernel.shared_bytes >= 64 * 64 * 2
    assert kernel.registers > 16
    assert kernel.spill_bytes == 0
    assert report.serialised == ()
    assert report.seconds > 0


def test_a_second_compilation_adds_nothing_to_the_cache(triton_cache: Path) -> None:
    first = compile_module(stand_in, SPEC, PROBLEM, SM_80)
    before = entries(triton_cache)
    assert any(name.endswith(".cubin") for name in before)
    stand_in.scores_kernel.device_caches.clear()
    second = compile_module(stand_in, SPEC, PROBLEM, SM_80)
    assert entries(triton_cache) == before
    assert isinstance(first, CompileReport)
    assert isinstance(second, CompileReport)
    assert second.kernels == first.kernels


class LaunchingDriver(OfflineDriver):
    """As triton's CUDA driver from a JITFunction's point of view: an ordinal for the device, and launches."""

    def __init__(self) -> None:
        super().__init__(SM_80.triton_target())
        self.launched: list[str] = []
        self.utils = self

    def get_current_device(self) -> int:  # type: ignore[override]
        return 0

    def launcher_cls(self, src: object, metadata: object) -> object:
        return lambda *arguments: self.launched.append(metadata.name)  # type: ignore[attr-defined]

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SM_80.shared_memory}

    def load_binary(self, name: str, *arguments: object) -> tuple[None, None, int, int, int]:
        return None, None, 32, 0, 1024


@pytest.mark.parametrize(("seqlen_k", "hits"), [(256, True), (512, True), (200, False)])
def test_a_launch_finds_what_was_compiled_ahead(triton_cache: Path, seqlen_k: int, hits: bool) -> None:
    """Real tensors of the problem, or of one that specialises alike, hit; one that masks its keys does not."""
    compile_module(stand_in, SPEC, PROBLEM, SM_80)
    before = entries(triton_cache)
    q, out = torch.zeros(1, 1, 128, 64, dtype=torch.float16), torch.zeros(1, 1, 128, 64, dtype=torch.float16)
    k, v = torch.zeros(1, 1, seqlen_k, 64, dtype=torch.float16), torch.zeros(1, 1, seqlen_k, 64, dtype=torch.float16)
    launching = LaunchingDriver()
    active = driver._active
    driver.set_active(launching)
    try:
        for kernel, grid, tensors, scalars, options in stand_in.plan(q, k, v, out, torch.zeros(1, 1, 128), 0.125):
            kernel[grid](*tensors, *scalars, **options)
    finally:
        driver._active = active
    assert launching.launched == ["scores_kernel"]
    assert (entries(triton_cache) == before) is hits


def test_reports_a_kernel_that_was_compiled_without_a_log(triton_cache: Path) -> None:
    first = compile_module(stand_in, SPEC, PROBLEM, SM_80)
    next(triton_cache.rglob(PTXAS_LOG)).unlink()
    stand_in.scores_kernel.device_caches.clear()
    second = compile_module(stand_in, SPEC, PROBLEM, SM_80)
    assert isinstance(first, CompileReport)
    assert isinstance(second, CompileReport)
    assert second.kernels == first.kernels


def test_targets_do_not_mix_in_one_process(triton_cache: Path) -> None:
    reports = [compile_module(stand_in, SPEC, PROBLEM, Target.for_arch(arch)) for arch in ("sm_80", "sm_90")]
    assert all(isinstance(report, CompileReport) for report in reports)
    assert {".target sm_80", ".target sm_90a"} == {
        line.split(",")[0].strip()
        for path in triton_cache.rglob("*.ptx")
        for line in path.read_text().splitlines()
        if line.startswith(".target")
    }


def test_a_kernel_that_triton_refuses_is_a_compile_failure() -> None:
    failure = compile_module(faulty_stand_ins.does_not_compile, SPEC, PROBLEM, SM_80)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.COMPILE
    assert "no_such_name" in failure.message


def test_too_much_shared_memory_is_a_resources_failure() -> None:
    small = Target(arch="sm_80", name=None, sm_count=108, shared_memory=32 * 1024)
    failure = compile_module(faulty_stand_ins.wants_much_shared_memory, SPEC, PROBLEM, small)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.RESOURCES
    assert "scores_kernel needs" in failure.message
    assert "sm_80 has 32768 per block" in failure.message


def test_spills_are_counted() -> None:
    report = compile_module(faulty_stand_ins.spills, SPEC, PROBLEM, SM_80)
    assert isinstance(report, CompileReport), report
    assert report.spill_bytes > 0


def test_the_driver_is_put_back() -> None:
    before = driver._active
    with contextlib.suppress(ZeroDivisionError), compiling_for(SM_80.triton_target()):
        assert driver.active.get_current_target().arch == 80
        raise ZeroDivisionError
    assert driver._active is before


def test_nothing_of_the_environment_changes() -> None:
    before = dict(os.environ)
    compile_module(stand_in, SPEC, PROBLEM, SM_80)
    assert dict(os.environ) == before
    assert not triton.knobs.nvidia.dump_ptxas_log

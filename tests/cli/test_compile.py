from concurrent.futures import Future
from typing import Self

import pytest

from attnforge import cli
from attnforge.cli import compile as compile_command
from attnforge.codegen import DType, Variant
from attnforge.compilation import CompileReport, Failure, FailureKind, KernelReport, Outcome
from attnforge.problem import Problem
from attnforge.shipping import default_variants, shipped_specs
from attnforge.target import Target


class StandInPool:
    """Answers at once, as ``outcomes`` says, and remembers what it was asked."""

    outcomes: dict[str, Outcome]
    asked: list[tuple[Variant, Problem, Target]]

    def __init__(self, jobs: int, deadline_s: float) -> None:
        self.jobs, self.deadline_s = jobs, deadline_s

    def submit(self, variant: Variant, problem: Problem, target: Target) -> Future[Outcome]:
        self.asked.append((variant, problem, target))
        future: Future[Outcome] = Future()
        future.set_result(self.outcomes.get(variant.spec.name, CLEAN))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        pass


def report(spill_bytes: int = 0, serialised: tuple[str, ...] = ()) -> CompileReport:
    kernel = KernelReport("forward_kernel", 1024, 64, spill_bytes, serialised)
    return CompileReport((kernel,), seconds=1.0)


CLEAN = report()
C7510 = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[StandInPool]:
    StandInPool.outcomes, StandInPool.asked = {}, []
    monkeypatch.setattr(compile_command, "CompilePool", StandInPool)
    return StandInPool


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["compile", *arguments])
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return command


def test_compiles_the_shipped_defaults_of_the_target(pool: type[StandInPool], run) -> None:
    status, out, _ = run("--target", "sm_86")
    target = Target.for_arch("sm_86")
    assert status == 0
    assert [variant for variant, _, _ in pool.asked] == list(default_variants(shipped_specs(), [target]))
    assert {asked for _, _, asked in pool.asked} == {target}
    assert "36 of 36 variants pass" in out


def test_options_choose_what_is_compiled(pool: type[StandInPool], run) -> None:
    options = ("--head-dim", "72", "--causal", "--pass", "backward", "--dtype", "float32", "--seqlen", "1000")
    assert run("--target", "sm_90", *options)[0] == 0
    ((variant, problem, _),) = pool.asked
    assert variant.spec.name == "backward_d72_causal"
    assert (problem.dtype, problem.seqlen_q, problem.seqlen_k) == (DType.FP32, 1000, 1000)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Failure(FailureKind.COMPILE, "CompilationError: at 3:4\nno such thing"), "no such thing"),
        (Failure(FailureKind.RESOURCES, "forward_kernel needs 262144 bytes"), "resources: forward_kernel needs 262144"),
        (Failure(FailureKind.TIMEOUT, "passed its deadline of 2 s"), "timeout: passed its deadline"),
        (report(spill_bytes=100_000), "forward_kernel spills 100000 bytes"),
        (report(serialised=(C7510,)), C7510),
    ],
)
def test_a_variant_that_fails_is_named_with_its_reason_and_the_exit_is_1(
    outcome: Outcome, words: str, pool: type[StandInPool], run
) -> None:
    pool.outcomes = {"forward_d80_causal": outcome}
    status, out, _ = run("--target", "sm_90", "--pass", "forward")
    assert status == 1
    by_hopper, by_portable = (out.rindex(f"\n{name}/forward_d80_causal/") for name in ("hopper", "portable"))
    first, second = sorted((by_hopper, by_portable))
    for reason in (out[first:second], out[second:]):
        assert words in reason
    assert "32 of 34 variants pass" in out


def test_strictness_is_chosen(pool: type[StandInPool], run) -> None:
    spec = ("--target", "sm_90", "--head-dim", "64", "--causal", "--pass", "forward")
    pool.outcomes = {"forward_d64_causal": report(spill_bytes=8, serialised=(C7510,))}
    assert run(*spec)[0] == 1
    assert run(*spec, "--allow-serialised")[0] == 0
    assert run(*spec, "--allow-serialised", "--max-spill-bytes", "7")[0] == 1
    assert run(*spec, "--allow-serialised", "--max-spill-bytes", "8")[0] == 0


def test_an_unknown_target_is_one_line(run) -> None:
    status, out, err = run("--target", "sm_91")
    assert (status, out) == (2, "")
    assert "known targets: sm_80" in err


def test_a_head_dim_of_v_alone_is_refused(run) -> None:
    status, _, err = run("--target", "sm_90", "--head-dim-v", "64")
    assert status == 2
    assert "--head-dim-v needs --head-dim" in err


@pytest.mark.timeout(180)
def test_a_real_compilation_in_child_processes(tmp_path, monkeypatch: pytest.MonkeyPatch, run) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    options = ("--head-dim", "16", "--no-causal", "--pass", "forward", "--jobs", "1")
    status, out, _ = run("--target", "sm_90", *options)
    assert status == 0, out
    assert "forward_kernel" in out
    assert list(tmp_path.rglob("forward_kernel.cubin"))

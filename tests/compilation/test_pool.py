import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from attnforge.codegen import AttentionSpec, DType, Pass, Variant, default_config
from attnforge.compilation import CompilePool, CompileReport, Failure, FailureKind, Outcome, WorkerNotStartedError
from attnforge.problem import Problem
from attnforge.target import Target
from tests.compilation import faulty_worker

SM_90 = Target.for_arch("sm_90")
SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=32, head_dim_v=32, causal=False)
VARIANT = Variant(SPEC, *default_config(SPEC, DType.BF16, SM_90.limits))
FAULTY = [sys.executable, str(Path(faulty_worker.__file__))]


def problem(batch: int) -> Problem:
    return Problem(batch=batch, heads=1, kv_heads=1, seqlen_q=128, seqlen_k=128, dtype=DType.BF16)


def stat_of(pid: int | str) -> list[str]:
    """State, parent, and the rest of a process' line in /proc; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def children_of(pid: int) -> set[int]:
    return {int(path.name) for path in Path("/proc").glob("[0-9]*") if stat_of(path.name)[1:2] == [str(pid)]}


def is_running(pid: int) -> bool:
    return stat_of(pid)[:1] not in ([], ["Z"])


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "never came true"
        time.sleep(0.05)


@pytest.fixture
def pool() -> Iterator[CompilePool]:
    with CompilePool(1, deadline_s=3.0, command=FAULTY) as pool:
        yield pool


def outcome(pool: CompilePool, behaviour: int) -> Outcome:
    return pool.submit(VARIANT, problem(behaviour), SM_90).result(timeout=120)


def test_a_worker_lives_between_jobs(pool: CompilePool) -> None:
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT
    first = children_of(os.getpid())
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT
    assert children_of(os.getpid()) == first


def test_a_hang_costs_its_deadline_and_its_whole_process_group(pool: CompilePool) -> None:
    future = pool.submit(VARIANT, problem(faulty_worker.HANGS), SM_90)
    wait_until(lambda: bool(sleepers()))
    (sleeper,) = sleepers()
    failure = future.result(timeout=60)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.TIMEOUT
    assert "deadline of 3 s" in failure.message
    wait_until(lambda: not is_running(sleeper))
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT


def sleepers() -> set[int]:
    """What hanging workers of this process have started."""
    return {grandchild for child in children_of(os.getpid()) for grandchild in children_of(child)}


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [(faulty_worker.DIES, ["SIGSEGV", "about to die"]), (faulty_worker.EXITS, ["ended with code 3"])],
)
def test_a_crash_is_a_failure_and_the_worker_is_replaced(pool: CompilePool, behaviour: int, words: list[str]) -> None:
    failure = outcome(pool, behaviour)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CRASH
    for word in words:
        assert word in failure.message
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT


def test_what_a_worker_prints_is_no_reply(pool: CompilePool) -> None:
    assert outcome(pool, faulty_worker.PRINTS) == faulty_worker.REPORT


def test_a_refusal_quotes_the_compiler(pool: CompilePool) -> None:
    failure = outcome(pool, faulty_worker.REFUSES)
    assert failure == Failure(FailureKind.COMPILE, "PassManager::run failed\nerror: the compiler's own words")


@pytest.mark.parametrize("behaviour", [faulty_worker.NO_JSON, faulty_worker.NO_REPORT, faulty_worker.TOO_DEEP])
def test_an_answer_that_is_no_report_is_a_crash_and_the_worker_is_replaced(pool: CompilePool, behaviour: int) -> None:
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT
    first = children_of(os.getpid())
    failure = outcome(pool, behaviour)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CRASH
    assert "no reply" in failure.message
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT
    assert not children_of(os.getpid()) & first


def test_a_worker_that_was_killed_while_it_idled_costs_no_job(pool: CompilePool) -> None:
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT
    (worker,) = children_of(os.getpid())
    os.kill(worker, signal.SIGKILL)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT


def test_where_no_process_can_be_started_jobs_raise_that(
    pool: CompilePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        with pytest.raises(WorkerNotStartedError, match="TMPDIR"):
            outcome(pool, faulty_worker.GOOD)
    assert outcome(pool, faulty_worker.GOOD) == faulty_worker.REPORT


def test_a_program_that_does_not_start_is_a_crash() -> None:
    with CompilePool(1, command=[sys.executable, "-c", "raise SystemExit('no such thing')"]) as pool:
        failure = outcome(pool, faulty_worker.GOOD)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CRASH
    assert "no such thing" in failure.message


def test_closing_kills_what_runs_and_cancels_what_waits() -> None:
    with CompilePool(1, deadline_s=600.0, command=FAULTY) as pool:
        running = pool.submit(VARIANT, problem(faulty_worker.HANGS), SM_90)
        waiting = pool.submit(VARIANT, problem(faulty_worker.GOOD), SM_90)
        wait_until(lambda: bool(sleepers()))
        (sleeper,) = sleepers()
    assert waiting.cancelled()
    failure = running.result(timeout=0)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.CRASH
    wait_until(lambda: not is_running(sleeper))
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(VARIANT, problem(faulty_worker.GOOD), SM_90)


def test_a_waiting_job_can_be_cancelled(pool: CompilePool) -> None:
    pool.submit(VARIANT, problem(faulty_worker.HANGS), SM_90)
    waiting: Future[Outcome] = pool.submit(VARIANT, problem(faulty_worker.GOOD), SM_90)
    assert waiting.cancel()


PARENT = """
import sys, time
from tests.compilation.test_pool import FAULTY, SM_90, VARIANT, CompilePool, faulty_worker, problem
pool = CompilePool(1, deadline_s=600.0, command=FAULTY)
pool.submit(VARIANT, problem(faulty_worker.HANGS), SM_90)
time.sleep(600)
"""


def test_a_killed_parent_leaves_no_orphans() -> None:
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=root)
    try:
        wait_until(lambda: any(children_of(child) for child in children_of(parent.pid)))
        (worker,) = children_of(parent.pid)
        (sleeper,) = children_of(worker)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not is_running(worker) and not is_running(sleeper))


@pytest.mark.slow
def test_compiles_a_shipped_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with CompilePool(1) as pool:
        report = outcome(pool, 4)
    assert isinstance(report, CompileReport), report
    assert [kernel.name for kernel in report.kernels] == ["forward_kernel"]
    assert list(tmp_path.rglob("forward_kernel.cubin"))

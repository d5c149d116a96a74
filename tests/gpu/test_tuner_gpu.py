"""The tuner on a real GPU."""

import asyncio
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import pytest
from rich.console import Console

from attnforge.cache.schema import Source, Versions
from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, default_config, schedule_of
from attnforge.codegen.schedules import DEFINITIONS
from attnforge.compilation import CompilePool, CompileReport, Failure, FailureKind, VariantData
from attnforge.dispatch.decision import DecisionKind, decide
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.effort import Effort
from attnforge.tuner.keeper import Keeper
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.measurer import Deadlines, Measurer
from attnforge.tuner.messages import Accurate, CheckNumerics, Compare, Comparison, Measure
from attnforge.tuner.progress import PlainProgress
from attnforge.tuner.result import Verdict
from attnforge.tuner.session import Session
from attnforge.tuner.study import Studies
from attnforge.tuner.task import self_attention, tasks

pytestmark = pytest.mark.gpu

FAULTY_WORKER = Path(__file__).with_name("faulty_gpu_worker.py")
T = TypeVar("T")


def answer_to(question: Coroutine[None, None, T]) -> T:
    return asyncio.run(question)


def default_of(pass_: Pass, head_dim: int = 64, causal: bool = True) -> Variant:
    spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
    return Variant(spec, *default_config(spec, DType.BF16, Target.current().limits))


def default_of_schedule(schedule: Schedule, pass_: Pass, head_dim: int) -> Variant:
    """Skips where the GPU is none that the schedule is for."""
    spec, limits = default_of(pass_, head_dim).spec, Target.current().limits
    definition = schedule_of(schedule, pass_)
    if definition.refusal(spec, DType.BF16, limits) is not None:
        pytest.skip(f"{limits.arch} is not for {schedule}")
    return Variant(spec, schedule, definition.default(spec, DType.BF16, limits))


@pytest.mark.parametrize(("schedule", "pass_"), list(DEFINITIONS))
def test_a_default_config_is_checked_timed_and_compared(schedule: Schedule, pass_: Pass) -> None:
    variant, problem = default_of_schedule(schedule, pass_, 64), self_attention(64, 1024, DType.BF16)
    data = VariantData.of(variant)
    with Measurer() as measurer:
        measured = answer_to(measurer.measure(Measure(data, problem)))
        assert isinstance(measured, Measurement)
        assert set(variant.definition.kernels) <= set(measured.kernel_ms)
        assert measured.total_ms > 0
        glanced = answer_to(measurer.measure(Measure(data, problem, dict.fromkeys(measured.kernel_ms, 1e-06))))
        assert isinstance(glanced, Measurement)
        assert glanced.stopped_early
        compared = answer_to(measurer.compare(Compare((data,), problem, seed=0)))
        assert isinstance(compared, Comparison)
        assert min(compared.rounds_ms[0]) > 0
        assert answer_to(measurer.check(CheckNumerics(data, DType.BF16))) == Accurate()
        assert measurer.workers_started == 1


@pytest.mark.parametrize(("schedule", "pass_"), list(DEFINITIONS))
@pytest.mark.parametrize("head_dim", [64, 72, 128])
def test_what_was_compiled_ahead_is_what_runs(
    schedule: Schedule, pass_: Pass, head_dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to compile in the measuring worker, not for the gate's whole blocks either."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    variant = default_of_schedule(schedule, pass_, head_dim)
    problem = self_attention(head_dim, 4096, DType.BF16)
    with CompilePool(1) as pool:
        assert isinstance(pool.submit(variant, problem, Target.current()).result(), CompileReport)
    ahead = sorted(tmp_path.rglob("*.cubin"))
    with Measurer() as measurer:
        for seqlen in (1024, 4096, 16384):
            request = Measure(VariantData.of(variant), self_attention(head_dim, seqlen, DType.BF16))
            assert isinstance(answer_to(measurer.measure(request)), Measurement)
    assert ahead
    assert sorted(tmp_path.rglob("*.cubin")) == ahead


@pytest.mark.parametrize(("seqlen", "kind"), [(1024, FailureKind.CRASH), (2048, FailureKind.TIMEOUT)])
def test_an_illegal_access_and_a_hang_cost_one_trial(seqlen: int, kind: FailureKind) -> None:
    data, deadline_s = VariantData.of(default_of(Pass.FORWARD)), 5.0
    with Measurer([sys.executable, str(FAULTY_WORKER)], deadlines=Deadlines(measure=deadline_s)) as measurer:
        answer_to(measurer.identify())
        began = time.monotonic()
        failed = answer_to(measurer.measure(Measure(data, self_attention(64, seqlen, DType.BF16))))
        assert isinstance(failed, Failure)
        assert failed.kind is kind, failed.message
        assert time.monotonic() - began < deadline_s + 5.0
        answer_to(measurer.identify())
        measured = answer_to(measurer.measure(Measure(data, self_attention(64, 4096, DType.BF16))))
        assert isinstance(measured, Measurement)
        assert measurer.workers_started == 2


def test_a_tune_ends_in_an_exact_decision(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    store = TunedCacheStore(settings)
    spec = default_of(Pass.FORWARD).spec
    session = Session(
        tasks=tasks([spec], [1024, 4096], DType.BF16),
        effort=Effort(trials=4, budget_s=120.0, quick=True, jobs=4),
        keeper=Keeper(settings, store),
        measurer=Measurer(),
        pool=CompilePool(4),
        progress=PlainProgress(Console(quiet=True), 1),
    )
    assert session.run()
    target = Target.current()
    for each in session.results[0].problems:
        assert each.verdict is Verdict.CHOSEN
        decision = decide(spec, each.problem, target, store.load(target))
        assert decision.kind is DecisionKind.EXACT
        assert decision.entry == each.entry
        assert decision.entry is not None
        assert decision.entry.source is Source.MEASURED


def test_on_sm_90_a_tune_tries_both_schedules_of_a_forward(tmp_path: Path) -> None:
    spec = default_of_schedule(Schedule.HOPPER, Pass.FORWARD, 128).spec
    settings = Settings(tmp_path)
    (task,) = tasks([spec], [4096], DType.BF16)
    session = Session(
        tasks=[task],
        effort=Effort(trials=6, budget_s=180.0, quick=True, jobs=4),
        keeper=Keeper(settings, TunedCacheStore(settings)),
        measurer=Measurer(),
        pool=CompilePool(4),
        progress=PlainProgress(Console(quiet=True), 1),
    )
    assert session.run()
    assert [each.verdict for each in session.results[0].problems] == [Verdict.CHOSEN]
    study = Studies(settings, Target.current()).study(spec, task.problems[0], Versions.installed())
    ran = {variant.schedule for variant, outcome in study.outcomes.items() if isinstance(outcome, Measurement)}
    assert ran == {Schedule.PORTABLE, Schedule.HOPPER}

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from attnforge.cache.schema import Source, Toolchain, TunedEntry
from attnforge.cache.store import TunedCacheStore
from attnforge.cli.tune import INTERPRETING
from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, default_configs
from attnforge.compilation import CompilePool, CompileReport, Failure, FailureKind, KernelReport
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.keeper import Keeper
from attnforge.tuner.measurer import INTERPRETER_WORKER, Measurer, interpreting_environment
from attnforge.tuner.prediction import LARGEST_SPILL, SpecPrediction, is_predictable
from attnforge.tuner.prediction_session import PredictionSession
from attnforge.tuner.progress import Phase, PlainProgress, Standing, TuneProgress
from attnforge.tuner.result import SpecResult, Verdict
from attnforge.tuner.task import tasks
from tests.tuner.fake_device import Script
from tests.tuner.fake_tune import fake_command, measurer_of

SM_90 = Target.for_arch("sm_90")
SPEC = AttentionSpec(pass_=Pass.BACKWARD, head_dim=128, head_dim_v=128, causal=False)
DEFAULT = Variant(SPEC, *default_configs(SPEC, DType.BF16, SM_90.limits)[-1])
QUIET = PlainProgress(Console(quiet=True), 1)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path))


@pytest.fixture
def prediction(script: Script) -> Iterator[SpecPrediction]:
    """One that has not asked anybody yet."""
    with CompilePool(1, command=fake_command("fake_compiler.py", script)) as pool:
        (task,) = tasks([SPEC], [4096], DType.BF16)
        toolchain = Toolchain.installed(Schedule.PORTABLE, Pass.BACKWARD)
        yield SpecPrediction(task, SM_90, toolchain, pool, asyncio.Queue(), 6, QUIET)


def predicted(script: Script, progress: TuneProgress | None = None) -> SpecResult:
    """With a compiler and an interpreter that do as the script says."""
    session = PredictionSession(
        tasks=tasks([SPEC], [1024, 4096], DType.BF16),
        target=SM_90,
        keeper=Keeper(Settings(Path(script.folder, "cache")), store_of(script)),
        pool=CompilePool(1, command=fake_command("fake_compiler.py", script)),
        interpreters=[measurer_of(script)],
        progress=progress or QUIET,
        compilations=6,
    )
    assert session.run()
    (result,) = session.results
    return result


class Heard(PlainProgress):
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True), 1)
        self.events: list[str] = []

    def started(self, standing: Standing) -> None:
        super().started(standing)
        self.events.append(f"started {standing.finished}/{standing.trials}")

    def tried(self, standing: Standing) -> None:
        super().tried(standing)
        self.events.append(f"tried {standing.finished}/{standing.trials}")

    @contextmanager
    def during(self, spec: AttentionSpec, phase: Phase) -> Iterator[None]:
        self.events.append(str(phase))
        with super().during(spec, phase):
            yield
        self.events.append(f"end of {phase}")

    def finished(self, result: SpecResult) -> None:
        self.events.append("finished")


def store_of(script: Script) -> TunedCacheStore:
    return TunedCacheStore(Settings(Path(script.folder, "cache")), Path(script.folder, "shipped"))


def entries(script: Script) -> list[TunedEntry]:
    found = [entry for loaded in store_of(script).load(SM_90) for entry in loaded.cache.entries]
    return sorted(found, key=lambda entry: entry.problem.seqlen_q)


def test_entries_are_marked_as_predicted_and_hold_no_times(script: Script) -> None:
    result = predicted(script)
    assert result.trials >= 6
    assert [each.entry for each in result.problems] == entries(script)
    for entry in entries(script):
        assert entry.source is Source.PREDICTED
        assert (entry.median_ms, entry.default_ms, entry.tflops) == (None, None, None)
        assert entry.gain is not None
        assert entry.gain >= 1.0


def test_it_is_told_while_configs_compile_and_numerics_are_checked(script: Script) -> None:
    heard = Heard()
    result = predicted(script, heard)
    events = heard.events
    assert events[:2] == ["started 0/6", "compiling"]
    compiled = events.index("end of compiling")
    assert "tried 6/6" in events[:compiled]
    assert events.index("checking numerics") > compiled
    assert events[-1] == "finished"
    last = [event for event in events if event.startswith("tried")][-1]
    assert last == f"tried {result.trials}/{result.trials}", "what was put together counts too"


def test_a_default_that_spills_badly_is_replaced_unless_the_other_is_wrong(script: Script) -> None:
    script.faults = {DEFAULT.config.name: "spills"}
    predicted(script)
    chosen = {entry.config.name for entry in entries(script)}
    assert chosen
    assert DEFAULT.config.name not in chosen
    script.faults |= dict.fromkeys(chosen, "wrong at the tail")
    predicted(script)
    assert {entry.config for entry in entries(script)} == {DEFAULT.config}


def test_nothing_right_is_said_and_not_written(script: Script) -> None:
    script.faults = {"*": "wrong at the tail"}
    result = predicted(script)
    assert {each.verdict for each in result.problems} == {Verdict.NOTHING_VALID}
    assert "accuracy: the tail is wrong" in result.problems[0].reason
    assert entries(script) == []


def test_nothing_that_compiles_is_said_and_not_written(script: Script) -> None:
    script.faults = {"*": "does not fit"}
    result = predicted(script)
    assert {each.verdict for each in result.problems} == {Verdict.NOTHING_VALID}
    assert {failure.kind for failure in result.failures.values()} == {FailureKind.RESOURCES}
    assert entries(script) == []


def test_the_shortlist_tells_about_other_tiles_of_every_kernel(prediction: SpecPrediction) -> None:
    shortlist = prediction._shortlist()
    assert len(set(shortlist)) == 5
    for kernel in ("dkdv", "dq"):
        assert len({prediction._tile(config, kernel) for config in shortlist}) == 5


@pytest.mark.parametrize(
    "dq",
    [
        KernelReport("dq_kernel", 1024, 64, LARGEST_SPILL + 1, ()),
        KernelReport("dq_kernel", 1024, 64, 0, ("C7510: wgmma serialised",)),
    ],
)
def test_kernels_that_spill_badly_or_are_serialised_are_dropped(prediction: SpecPrediction, dq: KernelReport) -> None:
    dkdv = KernelReport("dkdv_kernel", 1024, 64, 0, ())
    delta = KernelReport("delta_kernel", 1024, 64, 0, ())
    problem = prediction.task.problems[0]
    prediction._outcomes[prediction.default] = CompileReport((delta, dkdv, dq), 0.0)
    assert set(prediction._cycles(prediction.default.config, problem)) == {"dkdv"}
    prediction._outcomes[prediction.default] = Failure(FailureKind.COMPILE, "refused")
    assert prediction._cycles(prediction.default.config, problem) == {}


def test_the_whole_of_it_on_a_small_spec(tmp_path: Path) -> None:
    """The real compiler and the real interpreter."""
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=16, head_dim_v=16, causal=True)
    session = PredictionSession(
        tasks=tasks([spec], [1024], DType.BF16),
        target=SM_90,
        keeper=Keeper(Settings(tmp_path), TunedCacheStore(Settings(tmp_path), tmp_path / "shipped")),
        pool=CompilePool(1),
        interpreters=[Measurer(INTERPRETER_WORKER, interpreting_environment(os.environ), INTERPRETING)],
        progress=QUIET,
        compilations=2,
    )
    assert session.run()
    assert [each.verdict for each in session.results[0].problems] == [Verdict.CHOSEN]
    (loaded,) = session.keeper.load(SM_90)
    assert [entry.source for entry in loaded.cache.entries] == [Source.PREDICTED]


def test_predictions_are_of_portable_and_only_where_it_is_the_default(
    prediction: SpecPrediction,
) -> None:
    forward, narrow = (
        AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim, causal=False)
        for head_dim in (128, 32)
    )
    todo = tasks([forward, narrow, SPEC], [4096], DType.BF16)
    assert {task.spec: is_predictable(task, SM_90) for task in todo} == {forward: False, narrow: True, SPEC: False}
    assert all(is_predictable(task, Target.for_arch("sm_80")) for task in todo)
    (task,) = (task for task in todo if task.spec == forward)
    made = SpecPrediction(task, SM_90, prediction.toolchain, prediction.pool, asyncio.Queue(), 2, QUIET)
    assert made.default.schedule is Schedule.PORTABLE

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from attnforge.cache.schema import Conditions, Source, TunedEntry
from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import AttentionSpec, DType, Pass, Variant, default_config, fields_of
from attnforge.codegen.schedules.portable import FORWARD
from attnforge.compilation import FailureKind
from attnforge.settings import Settings
from attnforge.tuner.comparer import COMPARING_WORKERS
from attnforge.tuner.result import SpecResult, Verdict
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.session import Session
from attnforge.tuner.study import Studies
from attnforge.tuner.summary import summary
from attnforge.tuner.task import Task, tasks
from tests.tuner import fake_tune
from tests.tuner.fake_device import BEST, TARGET, VERSIONS, Script
from tests.tuner.fake_tune import TASKS, session_of
from tests.tuner.test_measurer import workers_of

FORWARD_SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=32, head_dim_v=32, causal=False)
"""Of a head dim whose default is portable on sm_90."""
BACKWARD_SPEC = AttentionSpec(pass_=Pass.BACKWARD, head_dim=32, head_dim_v=32, causal=False)
"""Portable's on every target."""
CAUSAL_SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=32, head_dim_v=32, causal=True)
SPACE = SearchSpace(FORWARD_SPEC, FORWARD, DType.BF16, TARGET.limits)
DEFAULT = Variant(FORWARD_SPEC, *default_config(FORWARD_SPEC, DType.BF16, TARGET.limits))


def task(spec: AttentionSpec, *seqlens: int) -> Task:
    (only,) = tasks([spec], seqlens or (1024,), DType.BF16)
    return only


def run(session: Session) -> list[SpecResult]:
    assert session.run()
    return session.results


def entries(script: Script) -> list[TunedEntry]:
    store = TunedCacheStore(Settings(Path(script.folder, "cache")), Path(script.folder, "shipped"))
    found = [entry for loaded in store.load(TARGET) for entry in loaded.cache.entries]
    return sorted(found, key=lambda entry: (entry.spec.name, entry.problem.seqlen_q))


def measured(script: Script) -> Counter[str]:
    """How often each config was measured on each problem."""
    log = script.log.read_text() if script.log.exists() else ""
    return Counter(line for line in log.splitlines() if line.startswith("measure"))


def stored(script: Script) -> set[str]:
    """The lines that the finished trials have left in the log of a tune of TASKS."""
    studies = Studies(Settings(Path(script.folder, "cache")), TARGET)
    return {
        f"measure {variant.name} {problem.seqlen_q}"
        for each in TASKS
        for problem in each.problems
        for variant in studies.study(each.spec, problem, VERSIONS).outcomes
    }


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path))


def test_the_best_config_is_found_compared_and_written(script: Script) -> None:
    (result,) = run(session_of(script, [task(FORWARD_SPEC, 1024, 4096)], trials=30))
    (short, long) = entries(script)
    for entry in (short, long):
        fields = fields_of(entry.config)
        assert {name: fields[name] for name in BEST} == BEST
        assert entry.source is Source.MEASURED
        assert entry.default_ms is not None
        assert entry.median_ms is not None
        assert entry.gain == pytest.approx(entry.default_ms / entry.median_ms)
        assert entry.trials == result.trials < 30, "it ends when nothing promises to be faster"
    assert (short.problem.seqlen_q, long.problem.seqlen_q) == (1024, 4096)
    assert [each.entry for each in result.problems] == [short, long]
    assert max(measured(script).values()) == 1, "a config is measured once on each problem"
    compared = [line.split()[2:] for line in script.log.read_text().splitlines() if line.startswith("compare ")]
    assert len(compared) == 2 * COMPARING_WORKERS
    assert all(names[0] == DEFAULT.config.name and short.config.name in names for names in compared)


def test_the_config_in_office_is_what_others_must_beat(script: Script) -> None:
    todo = [task(FORWARD_SPEC)]
    run(session_of(script, todo, trials=6))
    (in_office,) = entries(script)
    assert in_office.config != DEFAULT.config
    script.log.unlink()
    run(session_of(script, todo, trials=6, fresh=True))
    compared = [line.split()[2:] for line in script.log.read_text().splitlines() if line.startswith("compare ")]
    assert compared
    assert all(names[:2] == [in_office.config.name, DEFAULT.config.name] for names in compared)


def test_a_noisy_comparison_overwrites_nothing_and_is_made_again(script: Script) -> None:
    todo = [task(FORWARD_SPEC)]
    quiet = {"sm_mhz": 1980, "temperature_c": 40, "power_w": 500.0, "throttled": [], "other_processes": 0}
    disturbed = {"before": quiet, "after": quiet | {"other_processes": 1}}
    script.conditions = disturbed
    (first,) = run(session_of(script, todo, trials=2))
    (entry,) = entries(script)
    assert first.problems[0].verdict is Verdict.CHOSEN, "there was nothing to overwrite"
    assert first.problems[0].noise == ("another process on the GPU",)
    assert entry.noise == first.problems[0].noise
    assert entry.conditions == (msgspec.convert(disturbed, Conditions),) * COMPARING_WORKERS

    (second,) = run(session_of(script, todo, trials=8))
    assert second.problems[0].verdict is Verdict.NOISY
    assert second.problems[0].entry == entry
    assert entries(script) == [entry]
    text = Console(width=200, file=StringIO(), record=True)
    text.print(summary([second]))
    assert "noisy (another process on the GPU), the entry in office stays" in text.export_text()

    script.conditions = {"before": quiet, "after": quiet}
    tried = measured(script)
    (third,) = run(session_of(script, todo, trials=8))
    assert measured(script) == tried, "only the comparison is made again"
    assert third.problems[0].verdict is Verdict.CHOSEN
    assert not third.problems[0].noise
    assert entries(script)[0].created > entry.created
    (fourth,) = run(session_of(script, todo, trials=8))
    assert fourth.problems[0].verdict is Verdict.KEPT


def test_the_best_parts_of_backwards_are_put_together(script: Script) -> None:
    (result,) = run(session_of(script, [task(BACKWARD_SPEC)], trials=24))
    fields = fields_of(entries(script)[0].config)
    for kernel in ("dkdv", "dq"):
        assert fields[f"{kernel}_num_warps"] in (4, 8)
    times = [line.split()[1] for line in measured(script)]
    assert len(times) == len(set(times)) <= 25, "24 trials, and one that was put together"
    assert result.trials == len(times)


def test_faults_cost_a_trial_each_and_the_tune_goes_on(script: Script) -> None:
    faults = ("dies", "garbage", "hangs", "wrong", "prints", "does not fit", "never compiles")
    names = [config.name for config in SPACE.configs if config != DEFAULT.config]
    script.faults = dict(zip(names, faults, strict=False))
    session = session_of(script, [task(FORWARD_SPEC, 1024, 4096)], trials=len(SPACE.configs))
    session.measurer.deadlines = fake_tune.measurer_of(script, measure_s=2.0).deadlines
    (result,) = run(session)
    kinds = Counter(failure.kind for failure in result.failures.values())
    assert kinds == {
        FailureKind.CRASH: 2,
        FailureKind.TIMEOUT: 2,
        FailureKind.ACCURACY: 1,
        FailureKind.RESOURCES: 1,
    }
    assert result.trials == len(SPACE.configs)
    assert session.measurer.workers_started == 4
    assert max(measured(script).values()) == 1, "what failed on one problem is not tried on the next"
    assert {each.verdict for each in result.problems} == {Verdict.CHOSEN}
    assert not workers_of(os.getpid())


def test_nothing_valid_is_said_and_not_written(script: Script) -> None:
    run(session_of(script, [task(FORWARD_SPEC)], trials=2))
    before = entries(script)
    script.faults = {"*": "wrong"}
    (result,) = run(session_of(script, [task(FORWARD_SPEC)], trials=3, fresh=True))
    assert [each.verdict for each in result.problems] == [Verdict.NOTHING_VALID]
    assert "accuracy: out is wrong" in result.problems[0].reason
    assert entries(script) == before


def test_a_winner_that_fails_the_whole_gate_is_passed_over(script: Script) -> None:
    best = SPACE.config({**fields_of(DEFAULT.config), **BEST})
    script.faults = {best.name: "wrong at the tail"}
    (result,) = run(session_of(script, [task(FORWARD_SPEC)], trials=len(SPACE.configs)))
    (entry,) = entries(script)
    assert entry.config != best
    assert result.problems[0].verdict is Verdict.CHOSEN


def test_a_second_run_measures_nothing_and_a_longer_one_goes_on(script: Script) -> None:
    todo = [task(FORWARD_SPEC)]
    run(session_of(script, todo, trials=5))
    first = measured(script)
    (again,) = run(session_of(script, todo, trials=5))
    assert measured(script) == first
    assert [each.verdict for each in again.problems] == [Verdict.KEPT]
    run(session_of(script, todo, trials=8))
    assert len(measured(script)) == 8
    assert max(measured(script).values()) == 1
    run(session_of(script, todo, trials=5, fresh=True))
    assert max(measured(script).values()) == 2


def test_what_a_spent_budget_leaves_is_what_the_next_tune_begins_with(script: Script) -> None:
    todo = [task(FORWARD_SPEC), task(BACKWARD_SPEC), task(CAUSAL_SPEC)]
    for left in (2, 1, 0):
        session = session_of(script, todo, trials=1, budget_s=0.001)
        run(session)
        assert len(session.left) == left
    assert {entry.spec for entry in entries(script)} == {each.spec for each in todo}
    assert max(measured(script).values()) == 1


def test_a_later_tune_of_another_spec_loses_no_entry(script: Script) -> None:
    run(session_of(script, [task(FORWARD_SPEC)], trials=2))
    first = entries(script)
    run(session_of(script, [task(BACKWARD_SPEC)], trials=2))
    assert {entry.spec for entry in entries(script)} == {FORWARD_SPEC, BACKWARD_SPEC}
    assert first[0] in entries(script)


def test_a_spec_that_is_not_shipped_becomes_the_users(script: Script) -> None:
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=72, head_dim_v=72, causal=False)
    run(session_of(script, [task(spec), task(FORWARD_SPEC)], trials=2))
    written = sorted(path.parent.name for path in Path(script.folder, "cache", "kernels").rglob("*.py"))
    assert written == [spec.name], "the one chosen config of the spec, and nothing of a shipped one"


def started(script: Script) -> subprocess.Popen[bytes]:
    """Its temporary files, and its workers', are in a folder of their own."""
    temporary = Path(script.folder, "temporary")
    temporary.mkdir()
    command = [sys.executable, str(Path(fake_tune.__file__)), str(script.write())]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(temporary)})


def wait_for_requests(script: Script, process: subprocess.Popen[bytes], count: int) -> None:
    until = time.monotonic() + 90
    while not script.log.exists() or sum(measured(script).values()) < count:
        assert process.poll() is None, "the tune ended too early"
        assert time.monotonic() < until
        time.sleep(0.02)


def no_process_runs(script: Script) -> bool:
    """Whether every process that was told of the script has ended."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = script.folder.encode() in (path / "cmdline").read_bytes()
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if told and state != "Z":
            return False
    return True


def test_killed_midway_it_repeats_no_finished_trial_and_leaves_no_orphan(script: Script) -> None:
    script.seconds = 0.05
    process = started(script)
    wait_for_requests(script, process, 30)
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while not no_process_runs(script):
        assert time.monotonic() < until, "workers outlived the tune"
        time.sleep(0.1)
    assert not list(Path(script.folder, "temporary").glob("attnforge-*")), "workers left their folders behind"
    before, finished = measured(script), stored(script)
    assert finished
    results = run(session_of(script, TASKS))
    after = measured(script)
    assert all(after[line] == 1 for line in finished), "a finished trial was repeated"
    # Two had not finished when the tune was killed: one that was being measured, and one that was being stored.
    assert len([line for line, count in after.items() if count > 1]) <= 2
    assert set(before) <= set(after)
    assert all(each.verdict is not Verdict.NOTHING_VALID for result in results for each in result.problems)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_a_valid_cache(script: Script, signum: signal.Signals) -> None:
    script.seconds = 0.05
    process = started(script)
    until = time.monotonic() + 120
    while not entries(script):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signum)
    assert process.wait(timeout=30) == 130
    kept = {entry.spec for entry in entries(script)}
    assert kept
    assert no_process_runs(script)
    assert not list(Path(script.folder, "temporary").glob("attnforge-*"))

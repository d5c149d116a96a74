"""Several tuners on one storage, and what becomes of the trials of those that are killed."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from attnforge.cache.schema import TunedEntry
from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import Schedule, schedule_of
from attnforge.compilation import Failure, FailureKind
from attnforge.settings import Settings
from attnforge.tuner import claimant, storage, study
from attnforge.tuner.claimant import has_ended, this_process
from attnforge.tuner.report.sources import read_sources
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.spec_search import SpecSearch
from attnforge.tuner.storage import (
    DriverMissingError,
    StorageUnusableError,
    StorageUrlError,
    check_url,
    open_storage,
    sqlite_url,
)
from attnforge.tuner.study import Studies, Study
from tests.tuner import fake_tune, postgresql
from tests.tuner.fake_device import TARGET, VERSIONS, Script
from tests.tuner.fake_tune import TASKS, session_of
from tests.tuner.test_study import MEASUREMENT, OTHER, PROBLEM, SPEC, VARIANT

FAILURE = Failure(FailureKind.COMPILE, "refused")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "shared.sqlite3")
        return
    reason = postgresql.why_not()
    if reason:
        pytest.skip(reason)
    with postgresql.server() as address:
        yield address


def host_of(url: str) -> Studies:
    return Studies(Settings(Path("unused")), TARGET, url)


def study_of(host: Studies) -> Study:
    return host.study(SPEC, PROBLEM, VERSIONS)


def test_of_two_hosts_one_gets_a_config_and_the_other_its_outcome(url: str) -> None:
    with host_of(url) as here, host_of(url) as there:
        one, two = study_of(here), study_of(there)
        assert one.claim(VARIANT)
        assert one.claim(VARIANT), "it has it already"
        assert not two.claim(VARIANT)
        assert two.elsewhere == {VARIANT}
        assert two.claim(OTHER)
        assert one.record(VARIANT, MEASUREMENT)
        assert two.record(OTHER, FAILURE)
        two.refresh()
        assert two.news() == {VARIANT: MEASUREMENT}
        assert two.news() == {}
        assert two.outcomes == {VARIANT: MEASUREMENT, OTHER: FAILURE}
        assert not two.claim(VARIANT)
        assert not two.elsewhere


def test_what_is_given_up_is_free_for_others(url: str) -> None:
    with host_of(url) as there:
        with host_of(url) as here:
            assert study_of(here).claim(VARIANT)
            assert not study_of(there).claim(VARIANT)
        two = study_of(there)
        assert two.claim(VARIANT)
        assert two.record(VARIANT, MEASUREMENT)


def test_of_two_claims_at_once_the_earlier_counts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither has seen the other when it stores its own."""
    with host_of(url) as here, host_of(url) as there:
        one, two = study_of(here), study_of(there)
        refresh, won = one.refresh, []

        def interrupted() -> None:
            won.append(two.claim(VARIANT))
            refresh()

        monkeypatch.setattr(one, "refresh", interrupted)
        assert one.claim(VARIANT)
        assert won == [False]


def test_who_was_taken_for_dead_cannot_finish(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, so that its heartbeat alone tells: here it has stopped."""
    monkeypatch.setattr(study, "this_process", lambda: "another-machine/7.1")
    monkeypatch.setattr(storage, "GRACE_S", 1)
    monkeypatch.setattr(study, "SWEEP_S", 0.0)
    with host_of(url) as here, host_of(url) as there:
        one, two = study_of(here), study_of(there)
        assert one.claim(VARIANT)
        assert not two.claim(VARIANT)
        until = time.monotonic() + 20
        while not two.claim(VARIANT):
            assert time.monotonic() < until
            time.sleep(0.2)
            two.refresh()
        assert not one.record(VARIANT, FAILURE), "its claim is gone"
        assert two.record(VARIANT, MEASUREMENT)
        one.refresh()
        assert one.outcomes == {VARIANT: MEASUREMENT}


def test_a_beating_heart_keeps_a_claim(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "this_process", lambda: "another-machine/7.1")
    monkeypatch.setattr(storage, "GRACE_S", 2)
    monkeypatch.setattr(study, "SWEEP_S", 0.0)
    with host_of(url) as here, host_of(url) as there:
        here._heart._interval_s = 0.3
        assert study_of(here).claim(VARIANT)
        two = study_of(there)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            assert not two.claim(VARIANT)
            time.sleep(0.2)
            two.refresh()


def test_tuners_that_share_trials_agree_on_the_finalists_when_several_are_equally_fast(url: str) -> None:
    """Each knows its own outcomes before it reads the other's."""
    space = SearchSpace(SPEC, schedule_of(Schedule.PORTABLE, SPEC.pass_), PROBLEM.dtype, TARGET.limits)
    equals = list(space.variants)[:6]
    with host_of(url) as here, host_of(url) as there:
        one, two = (
            SpecSearch({Schedule.PORTABLE: space}, {PROBLEM: study_of(host)}, equals, trials=6, seed=0)
            for host in (here, there)
        )
        turns = list(zip(equals, (two, one) * 3, strict=True))
        assert all(search.claim(variant) for variant, search in turns)
        for variant, search in turns:
            search.record(variant, PROBLEM, MEASUREMENT)
        for search in (one, two):
            assert search.propose() is None
            assert not search.waits_for_others()
        assert one.finalists(PROBLEM, equals[0]) == two.finalists(PROBLEM, equals[0])
        assert one.recombined() == two.recombined()


def test_a_process_is_told_from_another_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    me = this_process()
    assert not has_ended(me)
    assert has_ended(f"{me}0"), "it started at another time"
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        name = f"{me.partition('/')[0]}/{child.pid}.{claimant._start_of(child.pid)}"
        child.wait()
    assert has_ended(name)
    assert not has_ended("another-machine/1.1"), "nobody can tell from here"
    assert not has_ended("")


def started(script: Script, url: str, host: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, fake_tune.__file__, str(script.write()), url, f"host{host}"]
    with Path(script.folder, f"host{host}.log").open("wb") as log:
        return subprocess.Popen(command, stderr=log)


def measured(script: Script) -> Counter[str]:
    lines = script.log.read_text().splitlines() if script.log.exists() else []
    return Counter(line for line in lines if line.startswith("measure "))


def finished_trials(url: str) -> Counter[tuple[str, str]]:
    """How often each config of each study has been finished."""
    opened, found = open_storage(url), Counter[tuple[str, str]]()
    for name in optuna.get_all_study_names(opened):
        for trial in optuna.load_study(study_name=name, storage=opened).get_trials(deepcopy=False):
            assert trial.state.is_finished(), "nobody runs it any more"
            if "outcome" in trial.user_attrs:
                found[name, repr(sorted(trial.params.items()))] += 1
    return found


def entries_of(script: Script, host: int) -> list[TunedEntry]:
    store = TunedCacheStore(Settings(Path(script.folder, f"host{host}")), Path(script.folder, "shipped"))
    found = [entry for loaded in store.load(TARGET) for entry in loaded.cache.entries]
    return sorted(found, key=lambda entry: (entry.spec.name, entry.problem.seqlen_q))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_four_tuners_two_are_killed_and_nothing_is_lost_or_done_twice(url: str, tmp_path: Path) -> None:
    script = Script(str(tmp_path), seconds=0.1)
    tuners = [started(script, url, host) for host in range(4)]
    until = time.monotonic() + 200
    while sum(measured(script).values()) < 25:
        assert time.monotonic() < until
        time.sleep(0.05)
    for tuner in tuners[:2]:
        os.kill(tuner.pid, signal.SIGKILL)
    for host, tuner in enumerate(tuners):
        expected = -signal.SIGKILL if host < 2 else 0
        assert tuner.wait(timeout=300) == expected, Path(tmp_path, f"host{host}.log").read_text()

    finished = finished_trials(url)
    assert max(finished.values()) == 1, "none is finished twice"
    by_study = Counter(name for name, _ in finished)
    assert len(by_study) == sum(len(task.problems) for task in TASKS)
    assert min(by_study.values()) >= 10, "none is lost: each study has its trials"
    twice = [line for line, times in measured(script).items() if times > 1]
    assert len(twice) <= 2 * 2, "what the killed had under way, and had finished but not stored, each"

    third, fourth = entries_of(script, 2), entries_of(script, 3)
    assert [entry.key for entry in third] == [entry.key for entry in fourth]
    assert [entry.config for entry in third] == [entry.config for entry in fourth], "the same winners"
    assert len(third) == len(by_study)


def test_a_database_that_is_gone_is_named() -> None:
    with pytest.raises(StorageUnusableError, match=r"postgresql://me:\*\*\*@127\.0\.0\.1:1/x") as caught:
        host_of("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("given", ["nonsense", "", "nosuch://host/name"])
def test_what_is_no_url_is_refused(given: str) -> None:
    with pytest.raises(StorageUrlError, match="postgresql://user@host/database"):
        check_url(given)


def test_a_driver_that_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DriverMissingError, match=r'pip install "attnforge\[postgresql\]"'):
        check_url("postgresql://me@host/x")


def test_libpq_is_told_to_notice_a_host_that_is_gone_and_other_drivers_are_not() -> None:
    def told(url: str) -> object:
        return storage._engine_options(sqlalchemy.make_url(url))["connect_args"]

    assert told("postgresql+psycopg://me@host/x") == storage.LIBPQ_OPTIONS
    assert told("postgresql+psycopg://me@host/x?connect_timeout=3") == {
        name: value for name, value in storage.LIBPQ_OPTIONS.items() if name != "connect_timeout"
    }
    assert told("postgresql+pg8000://me@host/x") == told("mysql+pymysql://me@host/x") == {}


def test_a_target_has_studies_of_its_own_in_a_storage_that_all_share(tmp_path: Path) -> None:
    address = sqlite_url(tmp_path / "shared.sqlite3")
    session = session_of(Script(str(tmp_path)), TASKS[:1], trials=2, storage=address)
    assert session.run()
    names = optuna.get_all_study_names(open_storage(address))
    assert names
    assert all(name.startswith(f"{TARGET.slug}/{TASKS[0].spec.name}") for name in names)
    assert not (tmp_path / "cache" / "studies").exists()
    sources = read_sources(Settings(tmp_path / "cache"), None, address)
    assert [len(each.outcomes) for each in sources.studies] == [2, 2]
    assert read_sources(Settings(tmp_path / "cache"), None).studies == ()

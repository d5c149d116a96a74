"""What is compared, what of that is written, and what is compared again."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import rmtree

import pytest

from attnforge.cache.document import encode
from attnforge.cache.schema import Toolchain, TunedEntry
from attnforge.cache.store import LoadedCache, TunedCacheStore
from attnforge.codegen import AttentionSpec, Config, Pass, Schedule, Variant, fields_of
from attnforge.problem import Bucket
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.keeper import Keeper
from attnforge.tuner.result import Verdict
from attnforge.tuner.spec_search import SpecSearch
from attnforge.tuner.storage import sqlite_url
from attnforge.tuner.study import Studies, TrialsForgottenError
from tests.runtime.cache.entries import a_cache
from tests.runtime.cache.entries import measured as an_entry
from tests.tuner.fake_device import BEST, TARGET, VERSIONS, Script
from tests.tuner.fake_tune import session_of
from tests.tuner.test_session import DEFAULT, FORWARD_SPEC, SPACE, entries, measured, run, task

TASK = task(FORWARD_SPEC)
(PROBLEM,) = TASK.problems
BEST_CONFIG = SPACE.config({**fields_of(DEFAULT.config), **BEST})
NOISY = {"before": {"sm_mhz": 1980, "temperature_c": 40, "power_w": 500.0, "throttled": [], "other_processes": 1}}
NOISY |= {"after": NOISY["before"]}
OTHER_TEMPLATES = Toolchain(triton=VERSIONS.triton, torch=VERSIONS.torch, templates="f" * 16)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path))


def entry_of(config: Config, **changes: object) -> TunedEntry:
    """What a tune with this triton and these templates would have written."""
    toolchain = Toolchain.installed(Schedule.PORTABLE, Pass.FORWARD)
    of_task = {"spec": FORWARD_SPEC, "problem": PROBLEM, "bucket": Bucket.of(PROBLEM)}
    return an_entry(**of_task | {"config": config, "toolchain": toolchain} | changes)


def write(script: Script, *entries: TunedEntry, cache: str = "cache") -> None:
    TunedCacheStore(Settings(Path(script.folder, cache)), Path(script.folder, "shipped")).write(TARGET, entries)


def compared(script: Script) -> list[list[str]]:
    """The configs of each comparison."""
    return [line.split()[2:] for line in script.log.read_text().splitlines() if line.startswith("compare ")]


@pytest.mark.slow
def test_another_machine_on_the_same_storage_compares_and_writes_for_itself(script: Script, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped" / f"{TARGET.slug}.yaml"
    shipped.parent.mkdir()
    shipped.write_bytes(encode(a_cache(entry_of(DEFAULT.config), target=TARGET)))
    url = sqlite_url(tmp_path / "shared.sqlite3")
    for cache in ("one", "two"):
        (result,) = run(session_of(script, [TASK], trials=6, storage=url, cache=cache))
        assert [each.verdict for each in result.problems] == [Verdict.CHOSEN], cache
    assert max(measured(script).values()) == 1, "the second machine has measured nothing again"
    stores = [TunedCacheStore(Settings(tmp_path / cache), tmp_path / "none") for cache in ("one", "two")]
    (one,), (two,) = (store.load(TARGET) for store in stores)
    assert one.cache.entries[0].config == two.cache.entries[0].config != DEFAULT.config
    (result,) = run(session_of(script, [TASK], trials=6, storage=url, cache="two"))
    assert [each.verdict for each in result.problems] == [Verdict.KEPT]


@pytest.mark.slow
def test_a_tuned_cache_that_was_deleted_is_written_again_without_new_trials(script: Script, tmp_path: Path) -> None:
    run(session_of(script, [TASK], trials=6))
    (before,), tried = entries(script), measured(script)
    rmtree(tmp_path / "cache" / "tuned")
    run(session_of(script, [TASK], trials=6))
    assert [entry.config for entry in entries(script)] == [before.config]
    assert measured(script) == tried


@pytest.mark.slow
def test_where_the_comparison_fails_nothing_is_written_and_the_next_tune_compares_again(script: Script) -> None:
    script.faults = {"*": "dies comparing"}
    (result,) = run(session_of(script, [TASK], trials=6))
    assert [each.verdict for each in result.problems] == [Verdict.NOT_COMPARED]
    assert entries(script) == []
    script.faults = {}
    tried = measured(script)
    (result,) = run(session_of(script, [TASK], trials=6))
    assert [each.verdict for each in result.problems] == [Verdict.CHOSEN]
    assert measured(script) == tried


@pytest.mark.slow
def test_a_config_that_brings_comparing_workers_down_is_left_out(script: Script) -> None:
    script.faults = {BEST_CONFIG.name: "dies comparing"}
    (result,) = run(session_of(script, [TASK], trials=len(SPACE.configs)))
    assert [each.verdict for each in result.problems] == [Verdict.CHOSEN]
    (entry,) = entries(script)
    assert entry.config != BEST_CONFIG
    assert BEST_CONFIG.name in compared(script)[0]


def written_meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Has something happen between a tune's first look at the tuned caches and the next."""
    load, looks = Keeper.load, []

    def load_again(self: Keeper, target: Target) -> tuple[LoadedCache, ...]:
        looks.append(target)
        if len(looks) == 2:
            act()
        return load(self, target)

    monkeypatch.setattr(Keeper, "load", load_again)


def test_what_another_tune_has_written_meanwhile_is_compared_too(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_meanwhile(monkeypatch, lambda: write(script, entry_of(BEST_CONFIG)))
    run(session_of(script, [TASK], trials=1))
    assert compared(script)[0] == [BEST_CONFIG.name, DEFAULT.config.name]
    assert [entry.config for entry in entries(script)] == [BEST_CONFIG]


def test_a_noisy_comparison_does_not_overwrite_what_another_tune_has_written_meanwhile(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = entry_of(BEST_CONFIG)
    written_meanwhile(monkeypatch, lambda: write(script, theirs))
    script.conditions = NOISY
    (result,) = run(session_of(script, [TASK], trials=1))
    assert [each.verdict for each in result.problems] == [Verdict.NOISY]
    assert entries(script) == [theirs]


def test_nor_what_earlier_templates_found(script: Script) -> None:
    """It serves, so it would go before the noisy one."""
    theirs = entry_of(BEST_CONFIG, toolchain=OTHER_TEMPLATES)
    write(script, theirs)
    script.conditions = NOISY
    (result,) = run(session_of(script, [TASK], trials=3))
    assert [(each.verdict, each.entry) for each in result.problems] == [(Verdict.NOISY, theirs)]


@pytest.mark.parametrize("changes", [{}, {"toolchain": OTHER_TEMPLATES}], ids=["these templates", "others"])
def test_a_winner_is_newer_than_what_it_replaces_whatever_the_clock_was(
    script: Script, changes: dict[str, object]
) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    write(script, entry_of(DEFAULT.config, created=tomorrow, **changes))
    run(session_of(script, [TASK], trials=6))
    (entry,) = (each for each in entries(script) if not each.differences)
    assert entry.config != DEFAULT.config
    assert entry.created > tomorrow


def test_kernels_of_a_size_that_is_not_shipped_are_written_again_when_they_are_gone(
    script: Script, tmp_path: Path
) -> None:
    todo = [task(AttentionSpec(pass_=Pass.FORWARD, head_dim=72, head_dim_v=72, causal=False))]
    run(session_of(script, todo, trials=2))
    kernels = {path.name for path in (tmp_path / "cache" / "kernels").rglob("*.py")}
    rmtree(tmp_path / "cache" / "kernels")
    (result,) = run(session_of(script, todo, trials=2))
    assert [each.verdict for each in result.problems] == [Verdict.KEPT]
    assert {path.name for path in (tmp_path / "cache" / "kernels").rglob("*.py")} == kernels != set()


def test_what_another_tuner_gives_up_at_the_end_is_tried_here(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own parts put together, say: it was claimed, and then its tuner was stopped."""
    url = sqlite_url(tmp_path / "shared.sqlite3")
    left: Variant = replace(DEFAULT, config=BEST_CONFIG)
    with Studies(Settings(tmp_path / "another"), TARGET, url) as others:
        theirs = others.study(FORWARD_SPEC, PROBLEM, VERSIONS)
        assert theirs.claim(left)
        monkeypatch.setattr(SpecSearch, "recombined", lambda self: [left])
        giving_up = threading.Timer(8.0, theirs.release)
        giving_up.start()
        run(session_of(script, [TASK], trials=2, storage=url))
        giving_up.join()
    assert [entry.config for entry in entries(script)] == [BEST_CONFIG]


def test_trials_that_another_tune_forgets_meanwhile_end_this_one_with_a_word(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sqlite_url(tmp_path / "shared.sqlite3")

    def forgotten(self: SpecSearch) -> list[Variant]:
        with Studies(Settings(tmp_path / "another"), TARGET, url) as others:
            others.discard([(FORWARD_SPEC, PROBLEM)], VERSIONS)
        return [replace(DEFAULT, config=BEST_CONFIG)]

    monkeypatch.setattr(SpecSearch, "recombined", forgotten)
    with pytest.raises(TrialsForgottenError, match="--fresh"):
        session_of(script, [TASK], trials=1, storage=url).run()

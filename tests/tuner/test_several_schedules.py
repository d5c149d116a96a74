"""A tune that searches several schedules of a spec together."""

from dataclasses import replace
from pathlib import Path

import pytest

from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import AttentionSpec, DType, Limits, Pass, Schedule, Variant, default_config, fields_of
from attnforge.compilation import FailureKind
from attnforge.dispatch.decision import Decision, decide
from attnforge.settings import Settings
from attnforge.tuner.offer import offer
from attnforge.tuner.result import Verdict
from tests.tuner.fake_device import HOPPER_BEST, TARGET, Script
from tests.tuner.fake_tune import session_of
from tests.tuner.test_session import BACKWARD_SPEC, FORWARD_SPEC, entries, measured, run, task

SM_90 = Limits("sm_90", 232448)
BOTH = (Schedule.PORTABLE, Schedule.HOPPER)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path))


NARROW_BACKWARD = replace(BACKWARD_SPEC, head_dim=16, head_dim_v=16)


def test_what_a_target_and_dtype_can_do_is_offered_and_the_rest_has_a_reason() -> None:
    on_hopper = offer(FORWARD_SPEC, DType.BF16, SM_90)
    assert (set(on_hopper.spaces), dict(on_hopper.refused)) == (set(BOTH), {})
    for spec, dtype, limits, reason in (
        (FORWARD_SPEC, DType.BF16, Limits("sm_80", 166912), "sm_80 is not"),
        (FORWARD_SPEC, DType.FP32, SM_90, "fp16 and bf16 only"),
        (replace(FORWARD_SPEC, head_dim_v=128), DType.BF16, SM_90, "must be equal"),
    ):
        elsewhere = offer(spec, dtype, limits)
        assert set(elsewhere.spaces) == {Schedule.PORTABLE}
        assert reason in elsewhere.refused[Schedule.HOPPER]


def test_what_the_user_did_not_name_is_left_out_and_what_cannot_be_is_refused() -> None:
    assert offer(FORWARD_SPEC, DType.BF16, SM_90, wanted=[Schedule.HOPPER]).refused == {
        Schedule.PORTABLE: "it was not asked for"
    }
    nothing = offer(NARROW_BACKWARD, DType.BF16, SM_90, wanted=[Schedule.HOPPER])
    assert not nothing.spaces
    assert "of which 16 are too few" in nothing.refused[Schedule.HOPPER]


def test_the_fastest_of_whatever_schedule_is_found_compared_and_written(script: Script) -> None:
    (result,) = run(session_of(script, [task(FORWARD_SPEC, 1024, 4096)], trials=24, schedules=()))
    lines = script.log.read_text().splitlines()
    tried = list(dict.fromkeys(line.split()[1] for line in lines if line.startswith("measure")))
    assert {name.split("/")[0] for name in tried[:2]} == set(BOTH), "every schedule's default comes first"
    assert max(measured(script).values()) == 1
    for entry in entries(script):
        assert entry.schedule is Schedule.HOPPER
        assert {name: fields_of(entry.config)[name] for name in HOPPER_BEST} == HOPPER_BEST
        assert entry.gain is not None
        assert entry.gain > 2, "over the default, which is portable"
    assert result.trials <= 24


def test_schedules_that_were_not_asked_for_are_neither_tried_nor_chosen(script: Script) -> None:
    todo = [task(FORWARD_SPEC)]
    run(session_of(script, todo, trials=4, schedules=(Schedule.PORTABLE,)))
    assert {line.split("/")[0] for line in measured(script)} == {"measure portable"}
    run(session_of(script, todo, trials=8, schedules=BOTH))
    assert max(measured(script).values()) == 1, "what was tried for one schedule is not tried again for both"
    portable, hopper = sorted(entries(script), key=lambda entry: entry.created)
    assert (portable.schedule, hopper.schedule) == BOTH, "the older one stays, for tensors that hopper cannot take"
    assert in_office(script).entry == hopper
    # The third is restricted to what is slower: the config in office is compared all the same.
    run(session_of(script, todo, trials=10, schedules=(Schedule.PORTABLE,)))
    assert in_office(script).variant == hopper.variant


def test_a_default_of_another_schedule_is_measured_and_must_be_beaten_but_no_more_of_that_is_tried(
    script: Script,
) -> None:
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
    default = Variant(spec, *default_config(spec, DType.BF16, SM_90))
    assert default.schedule is Schedule.HOPPER
    (result,) = run(session_of(script, [task(spec)], trials=6, schedules=(Schedule.PORTABLE,)))
    names = [line.split()[1] for line in measured(script)]
    assert (names[0], result.trials) == (default.name, 6)
    assert {name.split("/")[0] for name in names[1:]} == {"portable"}
    compared = [line.split()[2:] for line in script.log.read_text().splitlines() if line.startswith("compare ")]
    assert compared
    assert all(default.config.name in words for words in compared)


def in_office(script: Script) -> Decision:
    store = TunedCacheStore(Settings(Path(script.folder, "cache")), Path(script.folder, "shipped"))
    (problem,) = task(FORWARD_SPEC).problems
    return decide(FORWARD_SPEC, problem, TARGET, store.load(TARGET))


def test_a_schedule_that_the_target_has_not_is_said_and_nothing_is_tried(script: Script) -> None:
    (result,) = run(session_of(script, [task(NARROW_BACKWARD)], schedules=(Schedule.HOPPER,)))
    assert [each.verdict for each in result.problems] == [Verdict.NOTHING_VALID]
    assert "of which 16 are too few" in result.problems[0].reason
    assert not measured(script)


def test_a_run_that_was_finished_is_not_repeated_whatever_schedules_it_had(script: Script) -> None:
    todo = [task(FORWARD_SPEC)]
    run(session_of(script, todo, trials=8, schedules=()))
    tried = measured(script)
    (again,) = run(session_of(script, todo, trials=8, schedules=()))
    assert measured(script) == tried
    assert again.problems[0].verdict is Verdict.KEPT


def test_a_faulty_schedule_costs_its_trials_and_the_other_wins(script: Script) -> None:
    hopper = offer(FORWARD_SPEC, DType.BF16, SM_90).spaces[Schedule.HOPPER]
    script.faults = {config.name: "wrong" for config in hopper.configs}
    (result,) = run(session_of(script, [task(FORWARD_SPEC)], trials=12, schedules=()))
    (entry,) = entries(script)
    assert entry.schedule is Schedule.PORTABLE
    assert {failure.kind for failure in result.failures.values()} == {FailureKind.ACCURACY}

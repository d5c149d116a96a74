from pathlib import Path

import pytest

from attnforge.codegen import AttentionSpec, DType, Pass
from attnforge.tuner.result import SpecResult, Verdict
from attnforge.tuner.task import tasks
from tests.tuner.fake_device import Script
from tests.tuner.fake_tune import session_of

SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=32, head_dim_v=32, causal=False)
NO_TIME_S = 0.001
"""The default is tried all the same."""


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path))


def tuned(script: Script, trials: int, budget_s: float) -> SpecResult:
    session = session_of(script, tasks([SPEC], (1024,), DType.BF16), trials, budget_s=budget_s)
    assert session.run()
    (result,) = session.results
    return result


def test_a_search_without_time_for_its_trials_ended_early_and_the_same_again_goes_on(script: Script) -> None:
    first = tuned(script, 10, NO_TIME_S)
    assert first.ended_early
    assert first.trials < 10
    again = tuned(script, 10, 600.0)
    assert not again.ended_early
    assert again.trials > first.trials
    kept = tuned(script, 10, NO_TIME_S)
    assert kept.problems[0].verdict is Verdict.KEPT
    assert not kept.ended_early


def test_one_that_had_nothing_left_to_try_when_time_was_over_did_not(script: Script) -> None:
    assert not tuned(script, 1, NO_TIME_S).ended_early

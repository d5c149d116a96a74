"""Searches of both schedules together on the recorded sweeps: ``python -m tests.tuner.replay_tune`` shows them all."""

from statistics import mean

import pytest

from attnforge.tuner import gaussian_strategy
from attnforge.tuner.strategy import StrategyName
from tests.tuner.replay_tune import recorded_specs, searched

SPECS = tuple(recorded_specs())
TRIALS, LANES = 32, 5


def test_a_tune_finds_the_best_of_both_schedules_and_ends_early() -> None:
    runs = [searched(spec, TRIALS, LANES, seed=0) for spec in SPECS]
    regrets = [regret for run in runs for regret in run.regrets]
    assert len(regrets) == 28
    assert mean(regrets) < 0.002
    assert max(regrets) <= 0.02
    assert mean(run.trials for run in runs) <= 18


def test_ending_early_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = [searched(spec, TRIALS, LANES, seed=1) for spec in SPECS]
    monkeypatch.setattr(gaussian_strategy, "LEAST_PROMISE", 0.0)
    went_on = [searched(spec, TRIALS, LANES, seed=1) for spec in SPECS]
    assert sum(run.trials for run in ended) < 0.7 * sum(run.trials for run in went_on)
    regrets = (mean(regret for run in runs for regret in run.regrets) for runs in (ended, went_on))
    assert next(regrets) < next(regrets) + 0.002


def test_random_search_is_far_behind() -> None:
    runs = [searched(spec, 16, LANES, seed, strategy=StrategyName.RANDOM) for spec in SPECS for seed in range(2)]
    assert mean(regret for run in runs for regret in run.regrets) > 0.005

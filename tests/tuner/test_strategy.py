import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from attnforge.codegen import Config, Pass
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.ranking import RANKED_TRIALS
from attnforge.tuner.strategy import FixedOrder, StrategyName, strategy_of
from tests.tuner.fake_device import Script
from tests.tuner.fake_tune import session_of
from tests.tuner.replay import STRATEGIES, regrets, replayed_spaces
from tests.tuner.test_sampler import space_of
from tests.tuner.test_session import FORWARD_SPEC, run, task
from tests.tuner.test_session import SPACE as FORWARD_SPACE

SPACE = space_of(Pass.FORWARD, 256)
REFUSED = Failure(FailureKind.COMPILE, "refused")


def proposed(name: StrategyName, seed: int) -> list[Config]:
    strategy, found = strategy_of(name, SPACE, seed), list[Config]()
    while (config := strategy.propose(found)) is not None:
        found.append(config)
        strategy.tell(config, REFUSED)
    return found


@pytest.mark.parametrize("name", StrategyName)
def test_each_proposes_every_config_once_and_the_same_for_the_same_seed(name: StrategyName) -> None:
    found = proposed(name, 3)
    assert len(found) == len(set(found)) == len(SPACE.configs)
    assert set(found) == set(SPACE.configs)
    assert proposed(name, 3) == found


def test_random_follows_its_seed_and_exhaustive_the_space() -> None:
    assert proposed(StrategyName.RANDOM, 1) != proposed(StrategyName.RANDOM, 2)
    assert proposed(StrategyName.EXHAUSTIVE, 1) == list(SPACE.configs)


def test_a_tune_takes_the_strategy_that_it_is_told(tmp_path: Path) -> None:
    script = Script(str(tmp_path))
    session = session_of(script, [task(FORWARD_SPEC)])
    session.effort = replace(session.effort, strategy=StrategyName.EXHAUSTIVE, trials=sys.maxsize)
    (result,) = run(session)
    assert result.trials == len(FORWARD_SPACE.configs)


RANKED, TPE, RANDOM = "ranked tpe", "tpe", "random"


def mean(found: list[float]) -> float:
    return sum(found) / len(found)


@pytest.mark.parametrize("pass_", Pass)
def test_on_the_sweep_the_ranked_start_meets_the_bar(pass_: Pass) -> None:
    """With nothing known, not even the default. Up to here no proposal is TPE's, so one seed shows all there is."""
    spaces = [space for space in replayed_spaces() if space.spec.pass_ is pass_]
    runs = [regrets(space, STRATEGIES[RANKED], 0, RANKED_TRIALS, starts_with_default=False) for space in spaces]
    others = [
        regrets(space, STRATEGIES[RANDOM], seed, RANKED_TRIALS, starts_with_default=False)
        for space in spaces
        for seed in range(5)
    ]
    for trials in range(1, RANKED_TRIALS + 1):
        assert mean([run[trials - 1] for run in runs]) < mean([run[trials - 1] for run in others])
    tenths = [min(RANKED_TRIALS, round(0.1 * len(space.configs))) for space in spaces]
    assert median(run[trials - 1] for run, trials in zip(runs, tenths, strict=True)) <= 0.02


def test_on_the_sweep_tpe_beats_random_and_exhaustive_ends_at_the_best() -> None:
    spaces = [space for space in replayed_spaces() if space.spec.head_dim == 128][:4]
    after = 16

    def mean_regret(name: str) -> float:
        return mean([regrets(space, STRATEGIES[name], seed, after)[-1] for space in spaces for seed in range(4)])

    assert mean_regret(TPE) < mean_regret(RANDOM)
    forward = next(space for space in spaces if space.spec.pass_ is Pass.FORWARD)
    exhaustive = regrets(forward, lambda space, seed: FixedOrder(space, None), 0, len(forward.configs) + 1)
    assert exhaustive[-1] == 0.0

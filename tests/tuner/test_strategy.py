import sys
from dataclasses import replace
from pathlib import Path

import pytest

from attnforge.codegen import AttentionSpec, DType, Limits, Pass, Schedule, Variant
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.offer import offer
from attnforge.tuner.strategy import StrategyName, strategy_of
from tests.tuner.fake_device import Script
from tests.tuner.fake_tune import session_of
from tests.tuner.test_session import FORWARD_SPEC, SPACE, run, task

SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=256, head_dim_v=256, causal=False)
SPACES = offer(SPEC, DType.BF16, Limits("sm_90", 232448), quick=True).spaces
EVERY = [variant for space in SPACES.values() for variant in space.variants]


def proposed(name: StrategyName, seed: int) -> list[Variant]:
    strategy, found = strategy_of(name, SPACES, seed), list[Variant]()
    while (variant := strategy.propose(found)) is not None:
        found.append(variant)
        strategy.tell(variant, Failure(FailureKind.COMPILE, "refused"))
    return found


@pytest.mark.parametrize("name", StrategyName)
def test_each_proposes_every_variant_of_every_schedule_once_when_none_runs(name: StrategyName) -> None:
    found = proposed(name, 3)
    assert {variant.schedule for variant in found} == set(SPACES) == set(Schedule)
    assert len(found) == len(EVERY)
    assert set(found) == set(EVERY)
    assert proposed(name, 3) == found, "the same for the same seed"


def test_random_follows_its_seed_and_exhaustive_the_spaces() -> None:
    assert proposed(StrategyName.RANDOM, 1) != proposed(StrategyName.RANDOM, 2)
    assert proposed(StrategyName.EXHAUSTIVE, 1) == EVERY


def test_a_tune_takes_the_strategy_that_it_is_told(tmp_path: Path) -> None:
    script = Script(str(tmp_path))
    session = session_of(script, [task(FORWARD_SPEC)])
    session.effort = replace(session.effort, strategy=StrategyName.EXHAUSTIVE, trials=sys.maxsize)
    (result,) = run(session)
    assert result.trials == len(SPACE.configs)

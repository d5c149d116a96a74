"""The searches on the recorded sweeps of an H200 meet the bars: ``python -m tests.tuner.replay`` shows them all."""

from statistics import mean, median

import pytest

from attnforge.codegen import Pass, Schedule, Variant
from attnforge.compilation import Failure
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.strategy import FixedOrder
from tests.tuner.recorded import HopperSpace, RecordedSpace, hopper_spaces
from tests.tuner.replay import GAUSSIAN, RANDOM, SWEEPS, TPE, UNRANKED, Maker, Sweep, regrets, replay, unranked

TRIALS = 12
PORTABLE_FORWARD = Sweep(Schedule.PORTABLE, Pass.FORWARD)
PORTABLE_BACKWARD = Sweep(Schedule.PORTABLE, Pass.BACKWARD)
HOPPER_FORWARD = Sweep(Schedule.HOPPER, Pass.FORWARD)


def test_the_sweep_of_hopper_is_exhaustive() -> None:
    for space in hopper_spaces():
        assert isinstance(space, HopperSpace)
        assert set(space.kernel_ms) == set(space.configs), space.spec.name


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
def test_after_a_tenth_of_all_trials_the_median_regret_is_at_most_2_percent(sweep: Sweep) -> None:
    found = replay(sweep, GAUSSIAN, seeds=2, trials=32)
    assert median(found.after_share(0.1)) <= 0.02
    assert mean(found.after(32)) <= 0.01


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
def test_a_tune_beats_random_at_every_budget(sweep: Sweep) -> None:
    """From the first trial on that is a strategy's: hopper's searches begin with the default."""
    tune, at_random = (replay(sweep, name, seeds=2, trials=TRIALS) for name in (GAUSSIAN, RANDOM))
    means = [(mean(tune.after(n)), mean(at_random.after(n))) for n in range(1, TRIALS + 1)]
    assert all(a <= b for a, b in means)
    assert means[-1][0] < means[-1][1]


def test_without_the_static_model_it_still_beats_tpe_and_random() -> None:
    alone, tpe, at_random = (replay(PORTABLE_BACKWARD, name, 1, TRIALS) for name in (UNRANKED, TPE, RANDOM))
    for trials in (4, 8, 12):
        assert mean(alone.after(trials)) < mean(tpe.after(trials))
        assert mean(alone.after(trials)) < mean(at_random.after(trials))


class Misled:
    """Is told that what is fast is slow."""

    def __init__(self, space: RecordedSpace, seed: int) -> None:
        self._strategy = unranked(space, seed)
        self.propose = self._strategy.propose

    def tell(self, variant: Variant, outcome: Measurement | Failure) -> None:
        if isinstance(outcome, Measurement):
            outcome = Measurement({kernel: 1 / ms for kernel, ms in outcome.kernel_ms.items()}, runs=1)
        self._strategy.tell(variant, outcome)


def test_a_search_that_learns_the_wrong_thing_is_seen() -> None:
    """So that the bounds above say something."""

    def mean_regret(make: Maker) -> float:
        return mean(regrets(space, make, 0, 16)[-1] for space in PORTABLE_FORWARD.spaces)

    assert mean_regret(Misled) > 0.02 > 2 * mean_regret(unranked)


def test_an_exhaustive_search_ends_at_the_best() -> None:
    space = HOPPER_FORWARD.spaces[0]
    found = regrets(space, lambda space, seed: FixedOrder({Schedule.HOPPER: space}, None), 0, len(space.configs))
    assert found[-1] == 0.0

import numpy as np
import pytest

from attnforge.tuner.comparison import compare, winner
from tests.tuner.invented_gpu import DRIFTING, KINDS, InventedGpu, compared
from tests.tuner.switches import EQUAL, SESSIONS, false_switches, found_gains


@pytest.mark.parametrize("kind", KINDS)
def test_at_most_one_session_in_twenty_switches_among_equal_configs(kind: str) -> None:
    assert false_switches(kind) <= 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_gain_of_five_per_cent_is_found_nine_times_in_ten(kind: str) -> None:
    assert found_gains(kind) >= 0.9


def test_the_invented_gpu_fools_whoever_just_compares_medians() -> None:
    switches = 0
    for seed in range(SESSIONS):
        rounds = np.concatenate(compared(EQUAL, "usual", seed), axis=1)
        switches += int(np.argmin(np.median(rounds, axis=1))) != 0
    assert switches > 0.5 * SESSIONS


def test_the_invented_gpu_fools_whoever_measures_one_config_after_the_other() -> None:
    """Rounds that were not interleaved: warming up makes the first look faster, so it is the challenger here."""
    gpu = InventedGpu({"challenger": 2.0, "in office": 2.0}, DRIFTING, np.random.default_rng(0))
    challenger, in_office = ([gpu.time_round([name])[name] for _ in range(32)] for name in gpu.config_ms)
    assert winner([[in_office, challenger]]) == 1


def test_drift_touches_both_alike() -> None:
    clocks = np.linspace(1.0, 1.5, 20)
    in_office, challenger = (2.0 * clocks).tolist(), (1.8 * clocks).tolist()
    found = compare([challenger, challenger], [in_office, in_office])
    assert found.ratio == pytest.approx(0.9)
    assert found.low < 0.9 < found.high < 0.92
    assert found.is_faster


def test_it_is_the_fastest_of_those_that_are_faster() -> None:
    worker = [[1.0] * 16, [0.9] * 16, [0.8] * 16, [1.1] * 16]
    assert winner([worker, worker]) == 2


def test_workers_that_disagree_leave_the_first_in_office() -> None:
    assert winner([[[1.0] * 30, [0.8] * 30], [[1.0] * 16, [1.01] * 16]]) == 0


def test_a_gain_smaller_than_what_sets_workers_apart_is_none() -> None:
    worker = [[1.0] * 40, [0.995] * 40]
    assert winner([worker, worker]) == 0


@pytest.mark.parametrize("rounds", [1, 3])
def test_too_few_rounds_prove_nothing(rounds: int) -> None:
    assert winner([[[1.0] * rounds, [0.5] * rounds]]) == 0


def test_alone_it_stays() -> None:
    assert winner([[[1.0, 1.1, 0.9]]]) == 0

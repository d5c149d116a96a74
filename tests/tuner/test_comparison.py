import numpy as np
import pytest

from attnforge.tuner.comparison import compare, winner

ROUNDS = 20


def rounds(gains: list[float], seed: int, noise: float = 0.01, drift: float = 0.1) -> list[list[float]]:
    """Milliseconds of configs that are ``gains`` times as fast as the first, under clocks that drift."""
    draw = np.random.default_rng(seed)
    clocks = 1 + drift * np.linspace(0, 1, ROUNDS)
    spikes = 1 + (draw.random((len(gains), ROUNDS)) < 0.05) * 0.5
    times = np.array(gains)[:, None] ** -1 * clocks * np.exp(draw.normal(0, noise, (len(gains), ROUNDS))) * spikes
    return times.tolist()


def test_configs_that_are_alike_leave_the_first_in_office() -> None:
    switches = sum(winner(rounds([1.0, 1.0, 1.0, 1.0], seed)) != 0 for seed in range(200))
    assert switches <= 10, "5 % of 200"


def test_a_gain_of_five_per_cent_is_found() -> None:
    wins = sum(winner(rounds([1.0, 1.0, 1.05, 0.98], seed)) == 2 for seed in range(100))
    assert wins >= 90


def test_drift_touches_both_alike() -> None:
    first, second = rounds([1.0, 1.1], seed=0, noise=0.002, drift=0.5)
    compared = compare(second, first)
    assert compared.ratio == pytest.approx(1 / 1.1, rel=0.01)
    assert compared.low <= compared.ratio <= compared.high < 1
    assert compared.is_faster


def test_alone_it_stays() -> None:
    assert winner([[1.0, 1.1, 0.9]]) == 0

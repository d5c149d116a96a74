"""The searches of the hopper schedule on its recorded exhaustive sweep."""

from statistics import mean, median

from tests.tuner.replay_hopper import FEWEST, STRATEGIES, RecordedSpace, recorded_spaces, regrets, tenth

TUNE, TPE, RANDOM = STRATEGIES


def spaces() -> list[RecordedSpace]:
    return [space for space in recorded_spaces() if len(space.kernel_ms) >= FEWEST]


def test_the_sweep_is_exhaustive() -> None:
    for space in recorded_spaces():
        assert set(space.kernel_ms) == set(space.configs), space.spec.name


def test_a_tunes_search_meets_the_bar_after_a_tenth_of_the_trials() -> None:
    runs = [(space, regrets(space, STRATEGIES[TUNE], seed, 12)) for space in spaces() for seed in range(3)]
    assert median(run[tenth(space) - 1] for space, run in runs) <= 0.02


def test_a_tunes_search_beats_random_and_tpe_alone_at_every_budget() -> None:
    hard = [space for space in spaces() if space.spec.head_dim == 64 and len(space.kernel_ms) == 120]
    assert hard

    def means(name: str) -> list[float]:
        runs = [regrets(space, STRATEGIES[name], seed, 8) for space in hard for seed in range(4)]
        return [mean(of_trial) for of_trial in zip(*runs, strict=True)]

    tune, alone, at_random = means(TUNE), means(TPE), means(RANDOM)
    assert all(a < b for a, b in zip(tune[1:], at_random[1:], strict=True))
    assert all(a < b for a, b in zip(tune[2:], alone[2:], strict=True))

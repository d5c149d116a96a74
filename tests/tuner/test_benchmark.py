import pytest

from attnforge.tuner.benchmark import GLANCE_RUNS, LEAST_RUNS, MOST_RUNS, Stopwatch, measure


class InventedStopwatch:
    """Kernels of fixed times, with one wild run now and then."""

    def __init__(self, *times: float) -> None:
        self.times = times
        self.runs = 0

    def time(self, runs: int) -> list[tuple[float, ...]]:
        found = []
        for _ in range(runs):
            self.runs += 1
            factor = 10.0 if self.runs % 9 == 8 else 1.0
            found.append(tuple(time * factor for time in self.times))
        return found


KERNELS = ("delta", "dkdv", "dq")


def test_medians_of_each_kernel_and_their_sum() -> None:
    measured = measure(InventedStopwatch(0.1, 3.0, 2.0), KERNELS, {})
    assert measured.kernel_ms == {"delta": 0.1, "dkdv": 3.0, "dq": 2.0}
    assert measured.total_ms == pytest.approx(5.1)
    assert not measured.stopped_early
    assert LEAST_RUNS <= measured.runs <= MOST_RUNS


@pytest.mark.parametrize(
    ("best_ms", "stops"),
    [
        ({}, False),
        ({"dkdv": 2.9, "dq": 1.9}, False),
        ({"dkdv": 1.0, "dq": 1.9}, False),  # dq is good: it may be part of the best config
        ({"dkdv": 1.0, "dq": 1.0}, True),
    ],
)
def test_it_stops_early_when_every_kernel_is_clearly_worse(best_ms: dict[str, float], stops: bool) -> None:
    stopwatch: Stopwatch = InventedStopwatch(0.1, 3.0, 2.0)
    measured = measure(stopwatch, KERNELS, best_ms)
    assert measured.stopped_early is stops
    assert (measured.runs == GLANCE_RUNS) is stops


@pytest.mark.parametrize(("milliseconds", "runs"), [(0.01, MOST_RUNS), (1000.0, LEAST_RUNS)])
def test_short_kernels_run_more_often_than_long_ones(milliseconds: float, runs: int) -> None:
    assert measure(InventedStopwatch(milliseconds), ("forward",), {}).runs == runs

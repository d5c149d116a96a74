import numpy as np
import pytest
from msgspec import structs

from attnforge.cache.schema import Conditions, GpuState, Throttle
from attnforge.tuner.noise import noise
from tests.tuner.invented_gpu import KINDS, compared

QUIET = GpuState(sm_mhz=1980, temperature_c=45, power_w=650.0, throttled=(), other_processes=0)
UNKNOWN = GpuState(sm_mhz=None, temperature_c=None, power_w=None, throttled=None, other_processes=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ()),
        ({"temperature_c": 80, "power_w": 200.0}, ()),
        ({"sm_mhz": 1815}, ()),
        ({"sm_mhz": 1500}, ()),
        ({"throttled": (Throttle.POWER_CAP,)}, ()),
        ({"sm_mhz": 1480}, ("clocks between 1480 and 1980 MHz",)),
        ({"throttled": (Throttle.THERMAL,)}, ("thermal throttling",)),
        ({"throttled": (Throttle.POWER_BRAKE, Throttle.POWER_CAP)}, ("power brake throttling",)),
        ({"throttled": (Throttle.HARDWARE,)}, ("hardware throttling",)),
        ({"other_processes": 2}, ("another process on the GPU",)),
    ],
)
def test_what_disturbs_is_named_whether_it_shows_before_or_after(
    changes: dict[str, object], words: tuple[str, ...]
) -> None:
    changed = structs.replace(QUIET, **changes)
    assert noise([Conditions(before=QUIET, after=changed)]) == words
    assert noise([Conditions(before=changed, after=QUIET)]) == words
    assert noise([Conditions(before=QUIET, after=QUIET), Conditions(before=QUIET, after=changed)]) == words


def test_a_reason_is_given_once() -> None:
    crowded = Conditions(before=QUIET, after=structs.replace(QUIET, other_processes=1))
    assert noise([crowded, crowded]) == ("another process on the GPU",)


def test_one_worker_that_ran_at_lower_clocks_than_the_other_shows() -> None:
    slow = structs.replace(QUIET, sm_mhz=1200)
    assert noise([Conditions(before=QUIET, after=QUIET), Conditions(before=slow, after=slow)])


@pytest.mark.parametrize("kind", KINDS)
def test_what_interleaving_cancels_is_no_noise(kind: str) -> None:
    """The gates of test_comparison.py hold under all of these, so none of them may make the comparison void."""
    labelled = sum(bool(noise([], compared([1.0, 1.0, 1.05], kind, seed))) for seed in range(100))
    assert labelled <= 2


def test_times_that_cannot_tell_five_per_cent_are_noise() -> None:
    draw = np.random.default_rng(0)
    scattered = [(2.0 * np.exp(draw.normal(0, 0.4, (2, 16)))).tolist() for _ in range(2)]
    assert noise([], scattered) == ("times too scattered to tell 5 %",)
    assert noise([], [[in_office, [0.3 * ms for ms in other]] for in_office, other in scattered]) == ()
    assert noise([], [in_office_alone[:1] for in_office_alone in scattered]) == ()


def test_what_is_not_known_disturbs_nothing() -> None:
    assert noise([]) == ()
    assert noise([Conditions(before=UNKNOWN, after=UNKNOWN)]) == ()
    assert noise([Conditions(before=QUIET, after=UNKNOWN)]) == ()

import pytest
from msgspec import structs

from attnforge.cache.schema import Conditions, GpuState, Throttle
from attnforge.tuner.noise import noise

QUIET = GpuState(sm_mhz=1980, temperature_c=45, power_w=650.0, throttled=(), other_processes=0)
UNKNOWN = GpuState(sm_mhz=None, temperature_c=None, power_w=None, throttled=None, other_processes=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ()),
        ({"temperature_c": 80, "power_w": 200.0}, ()),
        ({"sm_mhz": 1935}, ()),
        ({"throttled": (Throttle.POWER_CAP,)}, ()),
        ({"sm_mhz": 1755}, ("clocks moved from 1980 to 1755 MHz",)),
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
    backwards = noise([Conditions(before=changed, after=QUIET)])
    assert len(backwards) == len(words)
    assert noise([Conditions(before=QUIET, after=QUIET), Conditions(before=QUIET, after=changed)]) == words


def test_a_reason_is_given_once() -> None:
    crowded = Conditions(before=QUIET, after=structs.replace(QUIET, other_processes=1))
    assert noise([crowded, crowded]) == ("another process on the GPU",)


def test_what_is_not_known_disturbs_nothing() -> None:
    assert noise([]) == ()
    assert noise([Conditions(before=UNKNOWN, after=UNKNOWN)]) == ()
    assert noise([Conditions(before=QUIET, after=UNKNOWN)]) == ()

from msgspec import structs

from attnforge.cache.schema import Conditions, GpuState, Throttle, TunedEntry
from attnforge.tuner.report.environment import environment_of
from attnforge.tuner.report.sources import ReportSources
from tests.runtime.cache.entries import measured, predicted
from tests.tuner.report.fabricated import H200, QUIET

UNKNOWN = GpuState(sm_mhz=None, temperature_c=None, power_w=None, throttled=None, other_processes=None)


def facts(*entries: TunedEntry) -> dict[str, str]:
    return dict(environment_of(ReportSources(H200.slug, H200, entries, (), ())))


def entry(before: GpuState, after: GpuState) -> TunedEntry:
    return measured(conditions=(Conditions(before=before, after=after),))


def test_the_gpu_is_told_over_all_comparisons() -> None:
    hot = structs.replace(
        QUIET, sm_mhz=1410, temperature_c=88, throttled=(Throttle.THERMAL, Throttle.POWER_CAP), other_processes=2
    )
    found = facts(entry(QUIET, hot), entry(QUIET, QUIET), entry(QUIET, structs.replace(QUIET, power_w=701.6)))
    assert found["SM clock"] == "1410 to 1980 MHz"
    assert found["temperature"] == "41 to 88 °C"
    assert found["power"] == "480 to 702 W"
    assert found["throttled by"] == "thermal (1 of 3 comparisons), power cap (3 of 3 comparisons)"
    assert found["other processes"] == "seen (1 of 3 comparisons)"


def test_a_quiet_gpu_is_called_so() -> None:
    idle = structs.replace(QUIET, throttled=())
    found = facts(entry(idle, idle))
    assert (found["SM clock"], found["throttled by"], found["other processes"]) == ("1980 MHz", "nothing", "none seen")


def test_what_a_driver_does_not_say_is_not_made_up() -> None:
    found = facts(entry(UNKNOWN, UNKNOWN))
    for label in ("SM clock", "temperature", "power", "throttled by", "other processes"):
        assert found[label] == "not recorded"


def test_entries_without_conditions_are_told() -> None:
    assert facts(measured())["GPU while comparing"] == "not recorded"
    found = facts(measured(), entry(QUIET, QUIET))
    assert found["GPU while comparing"] == "recorded for 1 of 2 comparisons"
    assert found["temperature"] == "41 °C"


def test_predictions_were_made_on_no_gpu() -> None:
    assert not {"GPU while comparing", "SM clock"} & facts(predicted()).keys()

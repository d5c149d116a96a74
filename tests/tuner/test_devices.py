import asyncio
import os
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from attnforge.tuner.devices import VISIBLE, Devices, seeing
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.measurer import Measurer
from tests.tuner.fake_device import Script
from tests.tuner.fake_tune import TASKS, measurer_of, session_of
from tests.tuner.test_measurer import MEASURE, workers_of


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path), devices=4)


def devices_seen(script: Script, word: str) -> Counter[str]:
    """How many requests of a kind each device saw, by what its worker was told to see."""
    lines = [line.split() for line in script.processes.read_text().splitlines()]
    of_process = {pid: words[1] for pid, *words in lines if words[0] == "identify"}
    return Counter(of_process[pid] for pid, *words in lines if words[0] == word)


def test_every_visible_device_measures_and_compares(script: Script) -> None:
    script.seconds = 0.05
    assert session_of(script, TASKS, trials=8).run()
    everyone = {"all", "1", "2", "3"}
    assert set(devices_seen(script, "measure")) == everyone
    assert set(devices_seen(script, "compare")) == everyone
    lines = script.log.read_text().splitlines()
    assert max(Counter(line for line in lines if line.startswith("measure ")).values()) == 1
    assert not workers_of(os.getpid())


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, "2"), ("", "2"), ("4,5,7", "7"), ("GPU-a, GPU-b, MIG-c", "MIG-c")]
)
def test_a_worker_sees_one_of_those_that_its_parent_sees(visible: str | None, seen: str) -> None:
    given = {"PATH": "/bin"} | ({} if visible is None else {VISIBLE: visible})
    assert seeing(given, 2) == {"PATH": "/bin", VISIBLE: seen}


@pytest.mark.parametrize("oddity", ["another", "broken"])
def test_one_of_another_kind_or_that_does_not_answer_is_left_alone(script: Script, oddity: str) -> None:
    script.odd_devices = {"2": oddity}

    async def identify(devices: Devices) -> int:
        return (await devices.identify()).devices

    with Devices(measurer_of(script)) as devices:
        assert asyncio.run(identify(devices)) == 4
        assert [each.environment.get(VISIBLE) for each in devices.measurers] == [None, "1", "3"]
        assert len(workers_of(os.getpid())) == 3


def test_who_has_waited_longest_goes_first(script: Script) -> None:
    """A comparison must not starve while there is always another trial."""
    began = []

    async def all_at_once() -> None:
        devices = Devices(Measurer(["unused"]))
        devices.measurers.append(Measurer(["unused"]))
        first, second = devices.measurers

        async def wait(name: str, wanted: Measurer | None) -> None:
            async with devices._taken(wanted):
                began.append(name)
                await asyncio.sleep(0.01)

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(devices.alone(first))
            tasks = [asyncio.create_task(wait(name, wanted)) for name, wanted in
                     (("trial 1", None), ("comparison", second), ("trial 2", None), ("trial 3", None))]  # fmt: skip
            await asyncio.gather(*tasks)

    asyncio.run(all_at_once())
    assert began == ["trial 1", "comparison", "trial 2", "trial 3"]


def test_who_gives_up_waiting_leaves_the_device_to_others(script: Script) -> None:
    async def both() -> Measurement | object:
        with Devices(measurer_of(script)) as devices:
            async with devices.alone(devices.measurers[0]):
                waiting = asyncio.create_task(devices.measure(MEASURE))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            return await devices.measure(MEASURE)

    assert isinstance(asyncio.run(both()), Measurement)

import asyncio
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from attnforge.compilation import Failure, FailureKind, VariantData
from attnforge.tuner.comparer import COMPARING_WORKERS
from attnforge.tuner.device_errors import DeviceLostError, DeviceLostWarning
from attnforge.tuner.devices import VISIBLE, Devices, seeing
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Compare, Comparison, Measure
from attnforge.tuner.result import Verdict
from attnforge.tuner.session import Session
from attnforge.tuner.strategy import StrategyName
from tests.tuner.fake_device import Script
from tests.tuner.fake_tune import TASKS, measurer_of, session_of
from tests.tuner.test_measurer import INNOCENT, MEASURE, PROBLEM, workers_of
from tests.tuner.test_session import FORWARD_SPEC, SPACE, measured, task


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


OTHER = Measure(VariantData.of(INNOCENT), PROBLEM)
COMPARE = Compare((VariantData.of(INNOCENT),), PROBLEM, seed=0)


def exhaustive(script: Script) -> Session:
    """A tune that measures every config of a space once."""
    session = session_of(script, [task(FORWARD_SPEC)], trials=len(SPACE.configs))
    session.effort = replace(session.effort, strategy=StrategyName.EXHAUSTIVE)
    return session


@pytest.mark.slow
def test_a_lost_gpu_costs_what_ran_on_it_and_the_others_go_on(script: Script) -> None:
    script.devices, script.seconds, script.lost_after = 2, 0.02, {"1": 3}
    session = exhaustive(script)
    with pytest.warns(DeviceLostWarning, match=r"GPU-1\)(?s:.*) goes on without it, on 1 GPU$"):
        assert session.run()
    (result,) = session.results
    assert [failure.kind for failure in result.failures.values()] == [FailureKind.CRASH], "what ran when it was lost"
    assert result.trials == len(SPACE.configs)
    assert set(measured(script).values()) == {1}
    assert result.problems[0].verdict is Verdict.CHOSEN
    assert devices_seen(script, "measure") == {"all": len(SPACE.configs) - 4, "1": 4}
    assert not workers_of(os.getpid())


@pytest.mark.slow
def test_comparisons_too_go_on_without_a_lost_gpu(script: Script) -> None:
    script.devices, script.seconds, script.lost_after = 2, 0.05, {"all": 3}
    session = session_of(script, [task(FORWARD_SPEC)], trials=16)
    with pytest.warns(DeviceLostWarning, match="GPU-all"):
        assert session.run()
    assert [each.verdict for each in session.results[0].problems] == [Verdict.CHOSEN]
    assert devices_seen(script, "compared") == {"1": COMPARING_WORKERS}


@pytest.mark.slow
def test_losing_the_last_gpu_ends_the_tune_and_the_same_command_goes_on(script: Script) -> None:
    script.devices, script.lost_after = 1, {"all": 3}
    session = exhaustive(script)
    with pytest.raises(DeviceLostError, match="same command goes on"):
        session.run()
    assert not session.results
    assert not workers_of(os.getpid())
    assert len(measured(script)) == 4
    script.lost_after = {}
    session = exhaustive(script)
    assert session.run()
    (result,) = session.results
    assert len(result.failures) == 1, "only what ran when it was lost is charged"
    assert set(measured(script).values()) == {1}, "finished trials are kept"
    assert result.trials == len(SPACE.configs)


def test_who_waits_for_a_lost_gpu_gets_the_one_that_stands_in_for_it(script: Script) -> None:
    script.devices, script.lost_after = 2, {"all": 1}

    async def lose_the_first() -> None:
        with Devices(measurer_of(script)) as devices:
            await devices.identify()
            first, second = devices.measurers
            async with devices.alone(second):
                assert isinstance(await devices.measure(MEASURE), Measurement)
                assert isinstance(await devices.measure(MEASURE), Failure), "it is lost now"
            async with devices.alone(second):
                losing = asyncio.create_task(devices.measure(OTHER))
                await asyncio.sleep(0)
                waiting = asyncio.create_task(compare_on(devices, first))
                await asyncio.wait([losing, waiting], timeout=1.0)
                assert not losing.done(), "it waits for the only one that is left"
            assert isinstance(await losing, Measurement), "uncharged"
            assert await waiting == "1"
            assert devices.measurers == [second]

    async def compare_on(devices: Devices, measurer: Measurer) -> str | None:
        async with devices.alone(measurer):
            with measurer.another() as fresh:
                assert isinstance(await fresh.compare(COMPARE), Comparison)
                return fresh.environment.get(VISIBLE)

    with pytest.warns(DeviceLostWarning):
        asyncio.run(lose_the_first())


@pytest.mark.slow
def test_a_gpu_that_is_lost_while_it_compares_is_left_out(script: Script) -> None:
    script.devices = 2

    async def lose(devices: Devices, measurer: Measurer) -> None:
        fresh = measurer.another()
        with fresh:
            await fresh.wake()
            script.lost_after = dict.fromkeys([measurer.environment.get(VISIBLE, "all")], 0)
            script.write()
            os.kill(fresh.process_id or 0, signal.SIGKILL)
            os.waitid(os.P_PID, fresh.process_id or 0, os.WEXITED | os.WNOWAIT)
            async with devices.alone(measurer):
                await fresh.compare(COMPARE)

    async def lose_both() -> None:
        with Devices(measurer_of(script)) as devices:
            await devices.identify()
            first, second = devices.measurers
            with pytest.raises(DeviceLostError, match="GPU-all"):
                await lose(devices, first)
            assert devices.measurers == [second]
            with pytest.raises(DeviceLostError, match="GPU-1"):
                await lose(devices, second)
            assert not devices.measurers
            for asking in (devices.measure(MEASURE), devices.measure(OTHER)):
                with pytest.raises(DeviceLostError, match="GPU-1"):
                    await asyncio.wait_for(asking, 5)
            with pytest.raises(DeviceLostError, match="GPU-1"):
                first.another()

    with pytest.warns(DeviceLostWarning):
        asyncio.run(lose_both())
    assert not workers_of(os.getpid())

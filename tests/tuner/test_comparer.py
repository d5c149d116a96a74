import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from attnforge.codegen import AttentionSpec, DType, Pass, Variant, default_config
from attnforge.compilation import Failure, FailureKind, VariantData
from attnforge.tuner.comparer import COMPARING_WORKERS, Comparer
from attnforge.tuner.devices import Devices
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Compare, Comparison, Measure
from attnforge.tuner.task import self_attention
from tests.tuner.fake_device import TARGET, Script
from tests.tuner.fake_tune import measurer_of
from tests.tuner.test_measurer import workers_of

SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
DATA = VariantData.of(Variant(SPEC, *default_config(SPEC, DType.BF16, TARGET.limits)))
REQUESTS = [Compare((DATA, DATA), self_attention(64, seqlen, DType.BF16), seed=7) for seqlen in (1024, 4096)]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path))


@pytest.fixture
def measurer(script: Script) -> Iterator[Measurer]:
    with measurer_of(script) as measurer:
        yield measurer


def comparer_of(devices: Devices) -> Comparer:
    (measurer,) = devices.measurers
    return Comparer(measurer, partial(devices.alone, measurer))


def compared(measurer: Measurer, requests: list[Compare]) -> list[tuple[Comparison, ...] | Failure]:
    with comparer_of(Devices(measurer)) as comparer:
        comparer.expect()
        return asyncio.run(comparer.compare(requests))


def requests_by_process(script: Script, word: str) -> dict[str, list[str]]:
    """The lines of the log of a kind of request, by the process that wrote them."""
    found: dict[str, list[str]] = {}
    for line in script.processes.read_text().splitlines():
        pid, _, request = line.partition(" ")
        if request.split()[0] == word:
            found.setdefault(pid, []).append(request)
    return found


def test_every_problem_is_compared_in_each_of_two_fresh_workers(script: Script, measurer: Measurer) -> None:
    asyncio.run(measurer.measure(Measure(DATA, REQUESTS[0].problem)))
    replies = compared(measurer, REQUESTS)
    assert [len(reply) for reply in replies if not isinstance(reply, Failure)] == [COMPARING_WORKERS] * len(REQUESTS)
    comparing = requests_by_process(script, "compare")
    assert len(comparing) == COMPARING_WORKERS >= 2
    assert all(len(requests) == len(REQUESTS) for requests in comparing.values()), "one worker for all of a spec"
    assert not comparing.keys() & requests_by_process(script, "measure").keys(), "none has measured before"
    seeds = {pid: {request.split()[1] for request in requests} for pid, requests in comparing.items()}
    assert sorted(map(sorted, seeds.values())) == [["7"], ["8"]], "each worker has an order of its own"
    assert len(workers_of(os.getpid())) == 1, "they are gone, and the search's worker is not"
    for told in requests_by_process(script, "own").values():
        assert str(measurer.process_id) in told[0].split(), "the search's worker is no stranger on the GPU"


def test_nothing_is_measured_meanwhile(script: Script, measurer: Measurer) -> None:
    script.seconds = 0.3

    async def both() -> None:
        devices = Devices(measurer)
        with comparer_of(devices) as comparer:
            comparing = asyncio.create_task(comparer.compare(REQUESTS))
            while not comparing.done():
                await devices.measure(Measure(DATA, REQUESTS[0].problem))

    asyncio.run(both())
    lines = [line.split(" ")[1] for line in script.processes.read_text().splitlines()]
    begun = 0
    for line in lines:
        begun += {"compare": 1, "compared": -1}.get(line, 0)
        assert not (line == "measure" and begun), "a measurement ran beside a comparison"
    assert lines.count("measure") >= 1
    assert lines.count("compare") == lines.count("compared") == COMPARING_WORKERS * len(REQUESTS)


def test_a_worker_that_dies_is_replaced_once(script: Script) -> None:
    script.faults = {"*": "dies comparing once"}
    with measurer_of(script) as measurer:
        assert not isinstance(compared(measurer, REQUESTS[:1])[0], Failure)
    script.faults = {"*": "dies comparing"}
    with measurer_of(script) as measurer:
        (reply,) = compared(measurer, REQUESTS[:1])
        assert isinstance(reply, Failure)
        assert reply.kind is FailureKind.CRASH
    assert not workers_of(os.getpid())


def test_workers_start_ahead_only_for_comparisons_that_will_come(measurer: Measurer) -> None:
    with comparer_of(Devices(measurer)) as comparer:
        assert not workers_of(os.getpid())
        comparer.expect()
        comparer.expect()
        assert len(workers_of(os.getpid())) == COMPARING_WORKERS
        asyncio.run(comparer.compare(REQUESTS))
        assert len(workers_of(os.getpid())) == COMPARING_WORKERS, "for the second"
        asyncio.run(comparer.compare([]))
    assert not workers_of(os.getpid())


def test_without_configs_there_is_nothing_to_start(measurer: Measurer) -> None:
    with comparer_of(Devices(measurer)) as comparer:
        assert asyncio.run(comparer.compare([])) == []
        assert not workers_of(os.getpid())

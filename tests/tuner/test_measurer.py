import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, default_config
from attnforge.codegen.schedules.portable import FORWARD
from attnforge.compilation import Failure, FailureKind, VariantData, WorkerNotStartedError
from attnforge.errors import NoGpuError
from attnforge.tuner.device_errors import DeviceLostError, WorkerUnusableError
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.measurer import Deadlines, Measurer
from attnforge.tuner.messages import Compare, Measure
from attnforge.tuner.task import self_attention
from tests.tuner.fake_device import IDENTITY, TARGET, Script, kernel_ms
from tests.tuner.fake_tune import measurer_of

SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
VARIANT = Variant(SPEC, *default_config(SPEC, DType.BF16, TARGET.limits))
PROBLEM = self_attention(64, 1024, DType.BF16)
MEASURE = Measure(VariantData.of(VARIANT), PROBLEM)
INNOCENT = Variant(SPEC, Schedule.PORTABLE, FORWARD.default(SPEC, DType.BF16, TARGET.limits))
"""Another config, which does nothing to the device."""


def workers_of(pid: int) -> set[str]:
    """The fake workers that ``pid`` has started and that still run."""
    while True:
        children = dict(children_of(pid))
        # A parent goes on a moment before its child's command line is there.
        if all(children.values()):
            return {number for number, words in children.items() if b"fake_worker.py" in words}
        time.sleep(0.01)


def children_of(pid: int) -> Iterator[tuple[str, bytes]]:
    """Number and command line of each process that ``pid`` has started, but for zombies."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state[1] == str(pid) and state[0] != "Z":
            yield path.name, words


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(str(tmp_path))


@pytest.fixture
def measurer(script: Script) -> Iterator[Measurer]:
    with measurer_of(script) as measurer:
        yield measurer


def answered(measurer: Measurer, variant: Variant = VARIANT) -> Measurement | Failure:
    return asyncio.run(measurer.measure(Measure(VariantData.of(variant), PROBLEM)))


def test_says_what_the_worker_runs_on(measurer: Measurer) -> None:
    assert asyncio.run(measurer.identify()) == IDENTITY


def test_no_gpu_names_the_way_out(script: Script) -> None:
    script.has_gpu = False
    with measurer_of(script) as measurer, pytest.raises(NoGpuError, match="--target sm_90"):
        asyncio.run(measurer.identify())


def test_a_worker_that_does_not_start_is_an_error_with_its_words() -> None:
    with (
        Measurer(["python", "-c", "raise SystemExit('no such device')"]) as measurer,
        pytest.raises(WorkerUnusableError, match="no such device"),
    ):
        asyncio.run(measurer.identify())


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("dies", FailureKind.CRASH),
        ("exits", FailureKind.CRASH),
        ("garbage", FailureKind.CRASH),
        ("no_reply", FailureKind.CRASH),
        ("raises", FailureKind.CRASH),
        ("stops", FailureKind.TIMEOUT),
        ("hangs", FailureKind.TIMEOUT),
        ("wrong", FailureKind.ACCURACY),
    ],
)
def test_a_fault_is_a_failure_of_its_kind_and_the_next_request_is_answered(
    script: Script, fault: str, kind: FailureKind
) -> None:
    script.faults = {"*": fault}
    with measurer_of(script, measure_s=2.0) as measurer:
        asyncio.run(measurer.identify())
        started = time.monotonic()
        failed = answered(measurer)
        assert isinstance(failed, Failure)
        assert failed.kind is kind
        assert time.monotonic() - started < 2.0 + 5.0, "a hang costs its deadline and little more"
        assert asyncio.run(measurer.identify()) == IDENTITY
        assert measurer.workers_started == (1 if fault == "wrong" else 2)
        assert len(workers_of(os.getpid())) == 1
    assert not workers_of(os.getpid())


def test_noise_on_stdout_does_no_harm(script: Script) -> None:
    script.faults = {"*": "prints"}
    with measurer_of(script) as measurer:
        assert answered(measurer) == Measurement(kernel_ms(VARIANT, PROBLEM), runs=7)


def test_closing_ends_a_request_in_flight(script: Script) -> None:
    script.faults = {"*": "hangs"}

    async def close_while_it_hangs(measurer: Measurer) -> Measurement | Failure:
        asking = asyncio.create_task(measurer.measure(MEASURE))
        while not script.log.exists():
            await asyncio.sleep(0.05)
        measurer.close()
        return await asking

    with measurer_of(script, measure_s=600.0) as measurer:
        reply = asyncio.run(close_while_it_hangs(measurer))
    assert isinstance(reply, Failure)
    assert not workers_of(os.getpid())


def test_closing_ends_the_opening_of_a_device(script: Script) -> None:
    script.opening_s = 600.0

    async def close_while_it_opens(measurer: Measurer) -> Measurement | Failure:
        asking = asyncio.create_task(measurer.measure(MEASURE))
        while not script.log.exists():
            await asyncio.sleep(0.05)
        measurer.close()
        return await asking

    with measurer_of(script) as measurer:
        assert isinstance(asyncio.run(close_while_it_opens(measurer)), Failure)
        assert measurer.workers_started == 1
    assert not workers_of(os.getpid())


def test_workers_that_wait_for_their_own_comparison_are_no_strangers_on_the_gpu(
    script: Script, measurer: Measurer
) -> None:
    compare = Compare((VariantData.of(INNOCENT),), PROBLEM, seed=0, own_processes=(1,))

    async def compare_beside_one_that_waits() -> set[int | None]:
        with measurer.another() as waiting, measurer.another() as comparing:
            await waiting.wake()
            await comparing.compare(compare)
            return {waiting.process_id, measurer.process_id}

    asyncio.run(measurer.identify())
    expected = asyncio.run(compare_beside_one_that_waits())
    asyncio.run(measurer.compare(compare))
    told = [line.split()[1:] for line in script.log.read_text().splitlines() if line.startswith("own ")]
    assert set(map(int, told[0])) == {1, *expected}
    assert told[1] == ["1"], "those that are closed are gone"


def kill(pid: int | None) -> None:
    """As the kernel does when memory runs out; until the last of its threads has ended."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_worker_that_was_killed_while_it_idled_is_replaced_and_no_config_is_charged(measurer: Measurer) -> None:
    asyncio.run(measurer.identify())
    kill(measurer.process_id)
    assert isinstance(answered(measurer), Measurement)
    assert measurer.workers_started == 2
    with measurer.another() as another:
        kill(another.process_id)
        assert isinstance(answered(another), Measurement)


def test_opening_the_device_counts_against_no_request_but_its_own(script: Script) -> None:
    script.opening_s = 1.0
    script.faults = {VARIANT.config.name: "dies"}
    with measurer_of(script, measure_s=0.5) as measurer:
        assert isinstance(answered(measurer, INNOCENT), Measurement)
        assert isinstance(answered(measurer), Failure)
        assert isinstance(answered(measurer, INNOCENT), Measurement)
        assert measurer.workers_started == 2
    script.opening_s = 600.0
    with measurer_of(script) as measurer:
        measurer.deadlines = Deadlines(identify=0.5)
        with pytest.raises(WorkerUnusableError, match=r"(?s)deadline of 0\.5 s.*CUDA_VISIBLE_DEVICES=1"):
            asyncio.run(measurer.identify())
    assert not workers_of(os.getpid())


def test_a_device_that_needs_a_moment_after_a_fault_is_given_it(script: Script) -> None:
    script.faults = {VARIANT.config.name: "needs a moment"}
    with measurer_of(script) as measurer:
        assert isinstance(answered(measurer), Failure)
        assert isinstance(answered(measurer, INNOCENT), Measurement)
        assert measurer.workers_started == 3, "the second could not open it"


def test_a_lost_device_is_an_error_and_charges_no_config(script: Script) -> None:
    script.lost_after = {"all": 1}
    with measurer_of(script) as measurer:
        assert isinstance(answered(measurer), Measurement)
        failed = answered(measurer)
        assert isinstance(failed, Failure), "what ran when it was lost may be why"
        assert failed.kind is FailureKind.CRASH
        for _ in range(2):
            with pytest.raises(DeviceLostError, match=r"GPU-all\).*the GPU is lost(?s:.*)same command goes on"):
                answered(measurer, INNOCENT)
        assert not workers_of(os.getpid())
        script.lost_after = {}
        script.write()
        assert isinstance(answered(measurer, INNOCENT), Measurement), "it came back"


def test_another_gpu_in_the_place_of_a_lost_one_is_not_measured_on(script: Script) -> None:
    script.faults = {VARIANT.config.name: "dies"}
    with measurer_of(script) as measurer:
        asyncio.run(measurer.identify())
        answered(measurer)
        script.odd_devices = {"all": "moved"}
        script.write()
        with pytest.raises(DeviceLostError, match="GPU-moved"):
            answered(measurer, INNOCENT)


def test_no_gpu_any_more_is_a_lost_device(script: Script) -> None:
    script.faults = {VARIANT.config.name: "dies"}
    with measurer_of(script) as measurer:
        asyncio.run(measurer.identify())
        answered(measurer)
        script.has_gpu = False
        script.write()
        with pytest.raises(DeviceLostError, match="none"):
            answered(measurer, INNOCENT)


def test_where_no_process_can_be_started_that_is_the_error(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.faults = {VARIANT.config.name: "dies"}
    with measurer_of(script) as measurer:
        answered(measurer)
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
            with pytest.raises(WorkerNotStartedError, match=r"/gone, or name another folder in TMPDIR"):
                answered(measurer, INNOCENT)
        assert isinstance(answered(measurer, INNOCENT), Measurement)

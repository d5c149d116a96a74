import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnforge.codegen import AttentionSpec, DType, Pass, Variant, default_config
from attnforge.compilation import Failure, FailureKind, VariantData
from attnforge.errors import NoGpuError
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.measurer import Measurer, WorkerUnusableError
from attnforge.tuner.messages import Measure
from attnforge.tuner.task import self_attention
from tests.tuner.fake_device import IDENTITY, TARGET, Script, kernel_ms
from tests.tuner.fake_tune import measurer_of

SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=64, head_dim_v=64, causal=False)
VARIANT = Variant(SPEC, *default_config(SPEC, DType.BF16, TARGET.limits))
PROBLEM = self_attention(64, 1024, DType.BF16)
MEASURE = Measure(VariantData.of(VARIANT), PROBLEM)


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


def answered(measurer: Measurer) -> Measurement | Failure:
    return asyncio.run(measurer.measure(MEASURE))


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

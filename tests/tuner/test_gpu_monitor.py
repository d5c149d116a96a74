import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from attnforge.cache.schema import GpuState, Throttle
from attnforge.tuner.gpu_monitor import GpuMonitor


class InventedNvml(ModuleType):
    """nvidia-ml-py of one GPU, ``uuid``; what is None is not supported."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self, has_driver: bool = True, bits: int | None = 0, processes: tuple[int, ...] | None = ()) -> None:
        super().__init__("pynvml")
        self.has_driver, self.bits, self.processes = has_driver, bits, processes

    def nvmlInit(self) -> None:  # noqa: N802 - its names
        if not self.has_driver:
            raise self.NVMLError

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return {("GPU-1", 1): 1980}[handle, kind]

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:  # noqa: N802
        return {("GPU-1", 0): 45}[handle, kind]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 650_500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
        return self._known(self.bits)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self._known(self.processes)]

    def _known(self, answer):
        if answer is None:
            raise self.NVMLError
        return answer


def state(monkeypatch: pytest.MonkeyPatch, nvml: InventedNvml, own_processes: tuple[int, ...] = ()) -> GpuState:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monitor = GpuMonitor.of_gpu("GPU-1")
    assert monitor is not None
    return monitor.state(own_processes)


def test_it_says_what_the_gpu_is_like(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state(monkeypatch, InventedNvml()) == GpuState(
        sm_mhz=1980, temperature_c=45, power_w=650.5, throttled=(), other_processes=0
    )


def test_what_the_gpu_does_not_support_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = state(monkeypatch, InventedNvml(bits=None, processes=None))
    assert (found.throttled, found.other_processes, found.sm_mhz) == (None, None, 1980)


@pytest.mark.parametrize(
    ("bits", "throttled"),
    [
        (0x1 | 0x2, ()),  # idle; clocks that somebody has set
        (0x4, (Throttle.POWER_CAP,)),
        (0x8, (Throttle.HARDWARE,)),
        (0x8 | 0x40, (Throttle.THERMAL,)),
        (0x20, (Throttle.THERMAL,)),
        (0x8 | 0x80 | 0x4, (Throttle.POWER_BRAKE, Throttle.POWER_CAP)),
    ],
)
def test_throttling_is_told_apart(monkeypatch: pytest.MonkeyPatch, bits: int, throttled: tuple[Throttle, ...]) -> None:
    assert state(monkeypatch, InventedNvml(bits=bits)).throttled == throttled


@pytest.mark.parametrize(
    ("processes", "others"),
    [
        ((), 0),
        ((os.getpid(),), 0),
        ((os.getpid(), 71), 0),
        ((os.getpid(), 71, 99), 1),
        ((99,), 0),  # we have it open and are not listed: numbers of another namespace, and this one may be ours
        ((97, 98, 99), 1),
    ],
)
def test_only_others_processes_count(monkeypatch: pytest.MonkeyPatch, processes: tuple[int, ...], others: int) -> None:
    assert state(monkeypatch, InventedNvml(processes=processes), own_processes=(71,)).other_processes == others


def test_there_is_no_monitor_without_the_package_or_the_driver_or_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", InventedNvml())
    assert GpuMonitor.of_gpu("GPU-2") is None
    monkeypatch.setitem(sys.modules, "pynvml", InventedNvml(has_driver=False))
    assert GpuMonitor.of_gpu("GPU-1") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuMonitor.of_gpu("GPU-1") is None


def test_the_tuners_own_process_never_imports_it() -> None:
    code = "import sys, attnforge.tuner.session, attnforge.tuner.gpu_device; sys.exit('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0

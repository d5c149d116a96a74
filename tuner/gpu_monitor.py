"""What NVIDIA's driver says of a GPU, through nvidia-ml-py where that is installed. For measuring workers only."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from attnforge.cache.schema import GpuState, Throttle

THROTTLE_BITS = {
    Throttle.POWER_CAP: 0x4,
    Throttle.HARDWARE: 0x8,
    Throttle.THERMAL: 0x20 | 0x40,
    Throttle.POWER_BRAKE: 0x80,
}
"""nvmlClocksEventReasons of nvml.h. The hardware's (0x8) is set beside the one that says which, where one does."""
Answer = TypeVar("Answer")


class GpuMonitor:
    """One GPU, as NVML sees it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    @staticmethod
    def of_gpu(uuid: str) -> GpuMonitor | None:
        """The monitor of the GPU with a UUID such as ``GPU-8f3a…``; None without nvidia-ml-py or its driver."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return GpuMonitor(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
        except pynvml.NVMLError:
            return None

    def state(self, own_processes: Sequence[int]) -> GpuState:
        """What the GPU is like now. ``own_processes`` are no others' work, and neither is this one's."""
        nvml, handle = self._nvml, self._handle
        power_mw = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        running = self._ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        return GpuState(
            sm_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            temperature_c=self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            power_w=None if power_mw is None else power_mw / 1000,
            throttled=self._throttled(),
            other_processes=None if running is None else _others([each.pid for each in running], own_processes),
        )

    def _throttled(self) -> tuple[Throttle, ...] | None:
        # Its older name is understood by every driver and every nvidia-ml-py.
        bits = self._ask(lambda: self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
        if bits is None:
            return None
        found = {throttle for throttle, mask in THROTTLE_BITS.items() if bits & mask}
        if found & {Throttle.THERMAL, Throttle.POWER_BRAKE}:
            found.discard(Throttle.HARDWARE)
        return tuple(throttle for throttle in Throttle if throttle in found)

    def _ask(self, question: Callable[[], Answer]) -> Answer | None:
        """None where the GPU does not support the question: MIG slices and laptops leave some out."""
        try:
            return question()
        except self._nvml.NVMLError:
            return None


def _others(running: Sequence[int], own_processes: Sequence[int]) -> int:
    """How many of the processes on the GPU are not ours.

    In a container the driver may count processes by the host's numbers, which are not ours to know: then as many as we
    are at most are taken for ours.
    """
    own = {os.getpid(), *own_processes}
    if own.isdisjoint(running):
        return max(0, len(running) - len(own))
    return len(set(running) - own)

"""Where a run is made: GPU, driver, versions, clocks."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from attnforge.bench.results import Environment, GpuState
from attnforge.target import Target

PACKAGES = ("attnforge", "torch", "triton", "flash-attn-4")
DEADLINE_S = 20.0
"""For nvidia-smi, which hangs when the driver does."""
STATE_FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")


def _ask_nvidia_smi(gpu: str, *arguments: str) -> str | None:
    """The answer of nvidia-smi for one GPU, as CSV; None when it is not there or refuses."""
    command = ["nvidia-smi", f"--id={gpu}", "--format=csv,noheader,nounits", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def _gpu_id(device: torch.device) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def gpu_state(device: torch.device) -> GpuState | None:
    """Clocks (MHz), temperature (°C), power (W) and compute processes now; None without nvidia-smi."""
    gpu = _gpu_id(device)
    answer = _ask_nvidia_smi(gpu, f"--query-gpu={','.join(STATE_FIELDS)}")
    if answer is None:
        return None
    sm_mhz, memory_mhz, temperature_c, power_w = map(_number, answer.split(", "))
    processes = _ask_nvidia_smi(gpu, "--query-compute-apps=pid")
    return GpuState(
        sm_mhz=sm_mhz,
        memory_mhz=memory_mhz,
        temperature_c=temperature_c,
        power_w=power_w,
        processes=None if processes is None else len(processes.splitlines()),
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if cudnn is not None:
        found["cudnn"] = str(cudnn)
    return found


def environment(device: torch.device, before: GpuState | None, after: GpuState | None) -> Environment:
    """The machine's description, with the GPU's state around the run."""
    target = Target.of_device(device)
    return Environment(
        gpu=target.name or target.arch,
        arch=target.arch,
        driver=_ask_nvidia_smi(_gpu_id(device), "--query-gpu=driver_version"),
        python=platform.python_version(),
        versions=_versions(),
        before=before,
        after=after,
    )

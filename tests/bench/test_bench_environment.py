"""What nvidia-smi says, when it is there, and what becomes of the record when it is not."""

import pytest
import torch

from attnforge.bench import environment
from attnforge.bench.results import GpuState

GPU = torch.device("cuda", 0)


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Puts a script of that name first in PATH."""
    monkeypatch.setattr(environment, "_gpu_id", lambda device: "GPU-0")

    def install(script):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_the_state_of_the_gpu(nvidia_smi):
    nvidia_smi('case "$*" in *compute-apps*) printf "11\\n12\\n";; *--id=GPU-0*) echo "1980, 3201, 41, [N/A]";; esac')
    expected = GpuState(sm_mhz=1980, memory_mhz=3201, temperature_c=41, power_w=None, processes=2)
    assert environment.gpu_state(GPU) == expected


@pytest.mark.parametrize("script", ["exit 9", "sleep 30"], ids=["refuses", "hangs"])
def test_no_state_when_nvidia_smi_does_not_answer(nvidia_smi, monkeypatch, script):
    monkeypatch.setattr(environment, "DEADLINE_S", 0.2)
    nvidia_smi(script)
    assert environment.gpu_state(GPU) is None


def test_no_state_without_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_gpu_id", lambda device: "GPU-0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.gpu_state(GPU) is None

from types import SimpleNamespace

import pytest
import torch
from triton.backends.compiler import GPUTarget

from attnforge.codegen import Limits
from attnforge.errors import NoGpuError, UnknownTargetError
from attnforge.target import Target

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
)
MI300X = SimpleNamespace(
    name="AMD Instinct MI300X",
    major=9,
    minor=4,
    multi_processor_count=304,
    shared_memory_per_block=65536,
    gcnArchName="gfx942:sramecc+:xnack-",
)


@pytest.fixture
def device(monkeypatch):
    def pretend(facts, hip=None):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
        monkeypatch.setattr(torch.version, "hip", hip)

    return pretend


def test_an_nvidia_gpu_is_read_from_the_driver(device):
    device(H200)
    assert Target.of_device(0) == Target(arch="sm_90", name="NVIDIA H200", sm_count=132, shared_memory=232448)


def test_an_amd_gpu_is_known_by_its_arch_without_its_features(device):
    device(MI300X, hip="7.0")
    assert Target.of_device(0) == Target(arch="gfx942", name="AMD Instinct MI300X", sm_count=304, shared_memory=65536)


def test_without_a_gpu_the_error_says_to_name_a_target(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoGpuError, match="--target"):
        Target.current()


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"])
def test_every_arch_that_can_be_compiled_for_is_known(arch):
    target = Target.for_arch(arch)
    assert target.arch == target.slug == arch
    assert target.limits == Limits(arch, target.shared_memory)
    assert target.shared_memory >= 65536
    assert target.sm_count > 80


@pytest.mark.parametrize("arch", ["sm_91", "hopper", "", "../sm_90"])
def test_an_unknown_arch_is_told_the_known_ones(arch):
    with pytest.raises(UnknownTargetError, match=r"sm_80, .*gfx950"):
        Target.for_arch(arch)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H200", "sm_90-nvidia-h200"),
        ("NVIDIA H200 MIG 1g.18gb", "sm_90-nvidia-h200-mig-1g-18gb"),
        ("../../etc/passwd", "sm_90-etc-passwd"),
        ("☃", "sm_90-unnamed"),
        ("x" * 500, "sm_90-" + "x" * 64),
    ],
)
def test_a_slug_is_safe_as_a_file_name(name, slug):
    assert Target(arch="sm_90", name=name, sm_count=132, shared_memory=232448).slug == slug


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("sm_90", GPUTarget("cuda", 90, 32)),
        ("sm_120", GPUTarget("cuda", 120, 32)),
        ("gfx942", GPUTarget("hip", "gfx942", 64)),
    ],
)
def test_triton_gets_its_own_words(arch, expected):
    assert Target.for_arch(arch).triton_target() == expected


def test_rdna_has_wavefronts_of_32():
    assert Target(arch="gfx1201", name=None, sm_count=64, shared_memory=65536).triton_target().warp_size == 32

"""A held launch gives Triton's launcher what a JITFunction gives it: real kernels, compiled; no GPU."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.driver import driver

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, render
from attnforge.codegen.schedules import DEFINITIONS
from attnforge.compilation.offline_driver import OfflineDriver
from attnforge.dispatch.launch import Output, first_launch
from attnforge.kernels import KernelSource, Origin
from attnforge.target import Target

TARGET = Target.for_arch("sm_90")
STREAM = 7


def kept(argument: Any) -> Any:
    """What a launcher was given; a descriptor's tensor is taken from it after the launch."""
    return copy.copy(argument) if isinstance(argument, TensorDescriptor) else argument


class RecordingDriver(OfflineDriver):
    """Loads every binary, and keeps what it should launch instead of launching it."""

    def __init__(self, target: GPUTarget) -> None:
        super().__init__(target)
        self.launched: list[tuple[Any, ...]] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": TARGET.shared_memory},
            load_binary=lambda name, *_: (f"module of {name}", f"function {name}", 128, 0, 1024),
            unload_module=lambda module: None,
        )

    def launcher_cls(self, source: object, metadata: object) -> Any:
        """Built by Triton once a kernel, called once a launch."""
        return lambda *arguments: self.launched.append(tuple(map(kept, arguments)))

    def get_current_stream(self, device: object) -> int:
        return STREAM


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # the index of torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    before = driver._active
    recorder = RecordingDriver(TARGET.triton_target())
    driver.set_active(recorder)
    yield recorder
    driver._active = before


def call(pass_: Pass) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Inputs of a pass, and its outputs by the module."""
    q, k, v, out, dout = (torch.zeros(2, heads, 100, 64, dtype=torch.float16) for heads in (4, 2, 2, 4, 4))
    lse = torch.zeros(2, 4, 100)
    if pass_ is Pass.FORWARD:
        return (q, k, v), lambda module: [Output.like(q), Output.float32(2, 4, 100)]
    gradients = [Output.like(q), Output.like(k), Output.like(v)]
    return (dout, q, k, v, out, lse), lambda module: [*gradients, Output.float32(*module.workspace_shape(q))]


def described(arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments that can be compared between calls: tensors but for their addresses, nothing that only hooks read."""
    x, y, z, stream, function, metadata, _, _, _, *rest = arguments
    return [x, y, z, stream, function, metadata, *map(facts, rest)]


def facts(argument: Any) -> Any:
    """What a tensor or a TMA descriptor of one is like, but for its address; anything else as it is."""
    if isinstance(argument, TensorDescriptor):
        about_blocks = (argument.block_shape, argument.layout, argument.padding)
        return facts(argument.base), tuple(argument.shape), tuple(argument.strides), *about_blocks
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.stride(), argument.dtype
    return argument


def tensors_in(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    """Those given to a kernel, by themselves or in descriptors."""
    given = (getattr(argument, "base", argument) for argument in arguments[9:])
    return [each for each in given if isinstance(each, torch.Tensor)]


KERNELS = {
    (Schedule.PORTABLE, Pass.FORWARD): ("forward",),
    (Schedule.HOPPER, Pass.FORWARD): ("forward",),
    (Schedule.PORTABLE, Pass.BACKWARD): ("delta", "dkdv", "dq"),
    (Schedule.HOPPER, Pass.BACKWARD): ("delta", "gradients", "dq"),
}


@pytest.mark.parametrize(("schedule", "pass_"), list(DEFINITIONS))
def test_a_held_launch_is_the_jit_launch_on_new_tensors(
    recording: RecordingDriver, schedule: Schedule, pass_: Pass
) -> None:
    spec = AttentionSpec(pass_=pass_, head_dim=64, head_dim_v=64, causal=True)
    variant = Variant(spec, schedule, DEFINITIONS[schedule, pass_].default(spec, DType.FP16, TARGET.limits))
    module = KernelSource(variant, render(variant), Origin.RENDERED, None).to_module()
    inputs, outputs_of = call(pass_)
    _, launch = first_launch(module, inputs, outputs_of(module), 0.125)
    by_jit, recording.launched = recording.launched, []
    new_inputs, _ = call(pass_)
    results = launch(*new_inputs)
    assert [described(arguments) for arguments in recording.launched] == [described(a) for a in by_jit]
    assert [arguments[4] for arguments in by_jit] == [f"function {name}_kernel" for name in KERNELS[schedule, pass_]]
    assert by_jit[0][3] == STREAM
    given = {tensor.data_ptr() for arguments in recording.launched for tensor in tensors_in(arguments)}
    assert given >= {t.data_ptr() for t in (*new_inputs, *results)}
    assert not given & {t.data_ptr() for t in inputs}

"""A held launch gives Triton's launcher what a JITFunction gives it: real kernels, compiled; no GPU."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from attnforge.codegen import AttentionSpec, DType, Pass, Variant, default_config, render
from attnforge.compilation.offline_driver import OfflineDriver
from attnforge.dispatch.launch import Output, first_launch
from attnforge.kernels import KernelSource, Origin
from attnforge.target import Target

TARGET = Target.for_arch("sm_90")
STREAM = 7


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
        return lambda *arguments: self.launched.append(arguments)

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
    tensors_as_facts = [(a.shape, a.stride(), a.dtype) if isinstance(a, torch.Tensor) else a for a in rest]
    return [x, y, z, stream, function, metadata, *tensors_as_facts]


@pytest.mark.parametrize("pass_", Pass)
def test_a_held_launch_is_the_jit_launch_on_new_tensors(recording: RecordingDriver, pass_: Pass) -> None:
    spec = AttentionSpec(pass_=pass_, head_dim=64, head_dim_v=64, causal=True)
    variant = Variant(spec, *default_config(spec, DType.FP16, TARGET.limits))
    module = KernelSource(variant, render(variant), Origin.RENDERED, None).to_module()
    inputs, outputs_of = call(pass_)
    _, launch = first_launch(module, inputs, outputs_of(module), 0.125)
    by_jit, recording.launched = recording.launched, []
    new_inputs, _ = call(pass_)
    results = launch(*new_inputs)
    assert [described(arguments) for arguments in recording.launched] == [described(a) for a in by_jit]
    assert [arguments[4] for arguments in by_jit] == [
        f"function {name}_kernel" for name in (("forward",) if pass_ is Pass.FORWARD else ("delta", "dkdv", "dq"))
    ]
    assert by_jit[0][3] == STREAM
    given = {a.data_ptr() for arguments in recording.launched for a in arguments[9:] if isinstance(a, torch.Tensor)}
    assert given >= {t.data_ptr() for t in (*new_inputs, *results)}
    assert not given & {t.data_ptr() for t in inputs}

"""A whole run with the GPU's parts faked: what is called in which order, and what an error leaves standing."""

from types import SimpleNamespace

import pytest
import torch

from attnforge.bench import session
from attnforge.bench.case import grid
from attnforge.bench.implementations import implementations
from attnforge.bench.results import OURS, Environment, Failure, Measurement
from attnforge.bench.session import NeedsGpuError, check_gpu, run_bench
from attnforge.codegen import DType, Pass, SpecError
from tests.runtime.cache.entries import ARCH


@pytest.fixture
def cpu(monkeypatch):
    """A CPU in place of the GPU."""
    monkeypatch.setattr(session, "check_gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(session.Target, "of_device", lambda device: ARCH)
    monkeypatch.setattr(session, "gpu_state", lambda device: None)


@pytest.fixture
def compiled_ahead(cpu, monkeypatch):
    """Nothing is compiled or timed; the cells that would have been compiled ahead."""
    compiled = []
    nowhere = Environment(gpu="none", arch="cpu", driver=None, python="3", versions={}, before=None, after=None)
    timer = SimpleNamespace(measure=lambda calls: {name: [1.0, 2.0, 3.0] for name in calls})
    monkeypatch.setattr(session, "environment", lambda *_: nowhere)
    monkeypatch.setattr(session, "CudaTimer", lambda device: timer)
    monkeypatch.setattr(session.Decisions, "compile_ahead", lambda self, cells: compiled.extend(cells))
    return compiled


def test_cells_survive_a_host_cost_that_cannot_be_measured(compiled_ahead):
    cases = grid(head_dims=[256], seqlens=[8], causal=[True], dtype=DType.FP32)
    done = []
    results = run_bench(cases, [Pass.FORWARD], implementations("flash"), done.append)
    assert compiled_ahead == [(cases[0], Pass.FORWARD)]
    (cell,) = results.cells
    assert done == [cell]
    assert isinstance(cell.outcomes["flash"], Measurement)
    ours = cell.outcomes[OURS]
    assert isinstance(ours, Failure), "the CPU is no device for attention()"
    assert ours.kind == "unsupported"
    assert "device" in ours.reason
    assert isinstance(results.host_cost, Failure)


def test_a_head_dim_that_no_template_renders_is_an_error_before_anything_runs(cpu):
    with pytest.raises(SpecError, match="head_dim"):
        run_bench(grid(head_dims=[512], seqlens=[16]), [Pass.FORWARD], implementations("flash"), print)


def test_interpreted_kernels_are_not_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(session.knobs.runtime, "interpret", True)
    with pytest.raises(NeedsGpuError, match="unset it"):
        check_gpu()

"""The bench's parts that only a GPU can run."""

import pytest
import torch

from attnforge.bench.case import grid
from attnforge.bench.implementations import implementations
from attnforge.bench.results import Measurement, read_results, write_results
from attnforge.bench.session import run_bench
from attnforge.bench.timing import CallFailedError, CudaTimer
from attnforge.codegen import Pass

pytestmark = pytest.mark.gpu


@pytest.fixture
def timer():
    return CudaTimer(torch.device("cuda"), budget_ms=20)


def test_sixty_four_times_the_work_takes_longer(timer):
    small, large = (torch.randn(n, n, device="cuda", dtype=torch.float16) for n in (1024, 4096))
    times = timer.measure({"small": lambda: small @ small, "large": lambda: large @ large})
    assert len(times["small"]) == len(times["large"]) >= timer.least_rounds
    assert min(times["large"]) > max(times["small"])


def test_a_call_that_raises_is_named(timer):
    def broken():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CallFailedError) as failed:
        timer.measure({"good": lambda: torch.ones(1, device="cuda"), "broken": broken})
    assert failed.value.name == "broken"


def test_a_small_run_measures_everything_and_can_be_written(tmp_path):
    cases = grid(head_dims=[64], seqlens=[1024], causal=[True], kv_heads=8)
    done = []
    results = run_bench(cases, list(Pass), implementations("flash"), done.append)
    assert done == results.cells
    assert [cell.pass_ for cell in done] == list(Pass)
    for cell in done:
        assert all(isinstance(outcome, Measurement) for outcome in cell.outcomes.values()), cell.outcomes
        assert cell.decision is not None
    cost = results.host_cost
    assert cost is not None
    assert 0 < cost.raw_launch_us < cost.dispatched_us
    assert results.environment.gpu
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results

"""Running cases on the CPU with a fake timer: failures are values, wrong results are caught, layouts are respected."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attnforge.bench.case import Case
from attnforge.bench.implementations import Implementation
from attnforge.bench.results import OURS, Failure, Measurement
from attnforge.bench.run import disagreement, run_case
from attnforge.bench.timing import CallFailedError, microseconds_per_call
from attnforge.codegen import DType, Pass

CASE = Case(batch=2, heads=4, kv_heads=2, seqlen=8, head_dim=16, causal=True, dtype=DType.FP32)
CPU = torch.device("cpu")


def sdpa(case: Case, device: torch.device = CPU) -> Callable[..., torch.Tensor]:
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=case.causal, enable_gqa=True)


def sdpa_heads_second(case: Case, device: torch.device) -> Callable[..., torch.Tensor]:
    def attend(q, k, v):
        assert q.is_contiguous()
        assert q.shape == (case.batch, case.seqlen, case.heads, case.head_dim)
        return sdpa(case)(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    return attend


def raising(error: Exception):
    def build(case: Case, device: torch.device):
        raise error

    return build


class FakeTimer:
    """Calls each once and says that each name takes what ``times`` tells; a name in ``failing`` raises."""

    def __init__(self, times: dict[str, float], failing: tuple[str, ...] = ()):
        self.times, self.failing = times, failing
        self.timed: list[list[str]] = []

    def measure(self, calls):
        self.timed.append(list(calls))
        for name, call in calls.items():
            if name in self.failing:
                raise CallFailedError(name) from torch.OutOfMemoryError("CUDA out of memory")
            call()
        return {name: [0.9 * self.times[name], self.times[name], 1.1 * self.times[name]] for name in calls}


def run(implementations, timer, passes=tuple(Pass)):
    return list(run_case(CASE, passes, implementations, timer, lambda case, pass_: None, CPU))


OURS_SDPA = Implementation(OURS, "ours", True, sdpa)
PEER = Implementation("peer", "Peer", False, sdpa_heads_second)


def test_both_passes_are_measured_in_each_ones_layout():
    timer = FakeTimer({OURS: 1.0, "peer": 3.0})
    forward, backward = run([OURS_SDPA, PEER], timer)
    assert (forward.pass_, backward.pass_) == (Pass.FORWARD, Pass.BACKWARD)
    for cell in (forward, backward):
        ours = cell.outcomes[OURS]
        assert isinstance(ours, Measurement)
        assert (ours.median_ms, ours.rounds) == (1.0, 3)
        assert ours.low_ms < ours.median_ms < ours.high_ms
        assert ours.tflops == pytest.approx(CASE.operations(cell.pass_) / 1e-3 / 1e12)
        assert cell.ratio("peer") == pytest.approx(3.0)
    assert timer.timed == [[OURS, "peer"]] * 2, "all in one interleaved measurement"


def test_a_forward_alone_records_no_graph():
    seen = []

    def build(case, device):
        def attend(q, k, v):
            seen.append(q.requires_grad)
            return sdpa(case)(q, k, v)

        return attend

    run([Implementation(OURS, "ours", True, build)], FakeTimer({OURS: 1.0}), [Pass.FORWARD])
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto"), "out of memory", "CUDA out of memory. Tried"),
        (RuntimeError("No available kernel. Aborting execution."), "unsupported", "No available kernel"),
        (ImportError("libcudnn"), "error", "ImportError: libcudnn"),
        (ValueError(), "error", "ValueError"),
    ],
)
def test_a_peer_that_fails_is_a_value_and_the_others_go_on(error, kind, reason):
    cells = run([OURS_SDPA, Implementation("broken", "B", True, raising(error)), PEER], FakeTimer({OURS: 1, "peer": 2}))
    for cell in cells:
        broken = cell.outcomes["broken"]
        assert isinstance(broken, Failure)
        assert broken.kind == kind
        assert reason in broken.reason
        assert isinstance(cell.outcomes[OURS], Measurement)
        assert list(cell.outcomes) == [OURS, "broken", "peer"]


def test_a_call_that_fails_while_timed_leaves_the_others():
    cells = run([OURS_SDPA, PEER], FakeTimer({OURS: 1.0}, failing=("peer",)))
    for cell in cells:
        assert cell.outcomes["peer"] == Failure(kind="out of memory", reason="CUDA out of memory")
        assert isinstance(cell.outcomes[OURS], Measurement)


def test_a_gpu_that_gives_up_fails_every_call_of_the_cell():
    class LostGpu(FakeTimer):
        def measure(self, calls):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for cell in run([OURS_SDPA, PEER], LostGpu({})):
        assert all(isinstance(outcome, Failure) and "illegal" in outcome.reason for outcome in cell.outcomes.values())


def test_a_gpu_that_is_down_already_fails_every_implementation(monkeypatch):
    def draw(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "randn", draw)
    for cell in run([OURS_SDPA, PEER], FakeTimer({})):
        assert all(isinstance(outcome, Failure) for outcome in cell.outcomes.values())


@pytest.mark.parametrize("fault", [lambda out: out * 1.03, lambda out: out * float("nan")])
def test_a_wrong_result_has_no_time(fault):
    wrong = Implementation(OURS, "ours", True, lambda case, device: lambda q, k, v: fault(sdpa(case)(q, k, v)))
    timer = FakeTimer({"peer": 1.0})
    for cell in run([wrong, PEER], timer):
        ours = cell.outcomes[OURS]
        assert isinstance(ours, Failure)
        assert ours.kind == "wrong result"
        assert "differs from peer" in ours.reason
    assert timer.timed == [["peer"]] * 2


def test_wrong_gradients_fail_the_backward_alone():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            return q.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.1

    wrong = Implementation(OURS, "ours", True, lambda case, device: lambda q, k, v: sdpa(case)(Wrong.apply(q), k, v))
    forward, backward = run([wrong, PEER], FakeTimer({OURS: 1.0, "peer": 1.0}))
    assert isinstance(forward.outcomes[OURS], Measurement)
    assert backward.outcomes[OURS].kind == "wrong result"


def test_disagreement_is_the_largest_and_nan_wins():
    one = torch.ones(4)
    assert disagreement([one, 2 * one], [one, one]) == pytest.approx(1.0)
    assert disagreement([one, one], [one, one]) == 0
    assert disagreement([float("nan") * one, 2 * one], [one, one]) != disagreement([one], [one])
    assert str(disagreement([2 * one, float("nan") * one], [one, one])) == "nan"


def test_host_time_is_a_median_of_batches():
    calls = []
    waits = []
    microseconds = microseconds_per_call(lambda: calls.append(1), lambda: waits.append(1), batches=3, calls=5)
    assert (len(calls), len(waits)) == (15, 4)
    assert microseconds > 0

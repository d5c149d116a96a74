"""The hopper backward's own text, run on the CPU: its barrier protocol, its masks and its tails."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnforge import reference
from attnforge.codegen import (
    AttentionSpec,
    DType,
    HopperBackwardConfig,
    Limits,
    Pass,
    Schedule,
    Variant,
    render,
)
from attnforge.codegen.schedules.hopper.backward_config import DqOrder
from attnforge.tuner.accuracy import check, gate_cases, prepare
from tests.codegen.gluon_pieces import ProtocolError
from tests.codegen.gluon_simulator import Machine

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")

SM_90 = Limits("sm_90", 232448)
SEQLENS = [(1, 1), (64, 128), (200, 300), (300, 65), (130, 1), (257, 400)]
"""(seqlen_q, seqlen_k): tails, one block, and causal rows that see no key."""


def a_spec(head_dim: int = 32, causal: bool = True) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.BACKWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)


def a_config(spec: AttentionSpec, **changed: object) -> HopperBackwardConfig:
    config = HopperBackwardConfig(
        block_m=64, stages=2, dq_order=DqOrder.NEXT_STEP, stats_by_tma=True, k_in_registers=False,
        v_in_registers=False, early_dv=True, anchor=False,
    )  # fmt: skip
    return replace(config, **changed)  # type: ignore[arg-type]


def rendered(spec: AttentionSpec, config: HopperBackwardConfig) -> str:
    return render(Variant(spec, Schedule.HOPPER, config))


def run(
    text: str, spec: AttentionSpec, seqlens: tuple[int, int], heads: int = 2, kv_heads: int = 1, seed: int = 0,
    expanded: bool = False,
) -> float:  # fmt: skip
    """The largest error of dq, dk and dv, as a part of what is allowed; infinite where one of them is NaN."""
    torch.manual_seed(seed)
    seqlen_q, seqlen_k = seqlens
    q = torch.randn(2, heads, seqlen_q, spec.head_dim).half()
    k, v, dout = (  # (B, S, H, D) in memory
        torch.randn(2, rows, count, width).half().transpose(1, 2)
        for rows, count, width in (
            (seqlen_k, kv_heads, spec.head_dim),
            (seqlen_k, kv_heads, spec.head_dim_v),
            (seqlen_q, heads, spec.head_dim_v),
        )
    )  # fmt: skip
    if expanded:
        q, k, v, dout = (
            q[:1].expand(2, -1, -1, -1),
            k[:, :1].expand(-1, kv_heads, -1, -1),
            v[:1, :1].expand(2, kv_heads, -1, -1),
            dout[:, :1].expand(-1, heads, -1, -1),
        )
    forward = reference.attention(q, k, v, causal=spec.causal, softmax_scale=0.3)
    out, lse = forward.out.half(), forward.lse.float()
    grads = [torch.full(tensor.shape, torch.nan).half() for tensor in (q, k, v)]
    machine = Machine(seed)
    module = machine.module(text)
    workspace = torch.full(module.workspace_shape(q), torch.nan)
    for kernel, grid, tensors, scalars, _ in module.plan(dout, q, k, v, out, lse, *grads, workspace, 0.3):
        machine.launch(kernel, grid[0], *tensors, *scalars)
    expected = reference.attention_backward(dout, q, k, v, causal=spec.causal, softmax_scale=0.3, out=out)
    errors = [(got - want).abs() / (4e-3 + 4e-3 * want.abs()) for got, want in zip(grads, expected, strict=True)]
    return max(float(error.nan_to_num(torch.inf).max()) for error in errors)


@pytest.mark.parametrize("seqlens", SEQLENS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", DqOrder)
@pytest.mark.parametrize("block_m", [64, 128])
def test_computes_the_gradients(seqlens: tuple[int, int], causal: bool, order: DqOrder, block_m: int) -> None:
    spec = a_spec(causal=causal)
    assert run(rendered(spec, a_config(spec, dq_order=order, block_m=block_m)), spec, seqlens) < 1


@pytest.mark.parametrize("order", DqOrder)
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_buffers_and_where_operands_lie(order: DqOrder, stages: int, causal: bool) -> None:
    spec = a_spec(causal=causal)
    config = a_config(
        spec,
        dq_order=order,
        stages=stages,
        stats_by_tma=False,
        k_in_registers=True,
        v_in_registers=True,
        early_dv=False,
        anchor=True,
    )
    assert run(rendered(spec, config), spec, (300, 200), heads=4, kv_heads=2) < 1


@pytest.mark.parametrize("head_dim", [24, 64, 72, 80, 112, 120])
@pytest.mark.parametrize("block_m", [64, 128])
def test_head_dims_in_chunks(head_dim: int, block_m: int) -> None:
    spec = a_spec(head_dim)
    assert run(rendered(spec, a_config(spec, block_m=block_m)), spec, (100, 130)) < 1


def test_head_dims_that_differ() -> None:
    spec = AttentionSpec(pass_=Pass.BACKWARD, head_dim=48, head_dim_v=80, causal=True)
    assert run(rendered(spec, a_config(spec)), spec, (100, 130)) < 1


@pytest.mark.parametrize("order", DqOrder)
@pytest.mark.parametrize("causal", [False, True])
def test_passes_the_tuners_accuracy_gate(causal: bool, order: DqOrder) -> None:
    spec = a_spec(72, causal)
    text = rendered(spec, a_config(spec, dq_order=order))

    def launch(*arguments: Any) -> None:
        machine = Machine(0)
        module = machine.module(text)
        workspace = torch.full(module.workspace_shape(arguments[1]), torch.nan)
        for kernel, grid, tensors, scalars, _ in module.plan(*arguments[:-1], workspace, arguments[-1]):
            machine.launch(kernel, grid[0], *tensors, *scalars)

    for case in gate_cases(spec, DType.FP16, tile=128):
        report = check(launch, prepare(case, torch.device("cpu")))
        assert report.failure is None


def test_expanded_heads_and_batches() -> None:
    spec = a_spec()
    assert run(rendered(spec, a_config(spec)), spec, (70, 90), heads=4, kv_heads=2, expanded=True) < 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", DqOrder)
def test_any_order_of_events_gives_the_same(seed: int, order: DqOrder) -> None:
    spec = a_spec(80)
    assert run(rendered(spec, a_config(spec, dq_order=order)), spec, (400, 300), seed=seed) < 1


FAULTS = {
    "K is not waited for": ("mbarrier.wait(k_full.index(0), 0)", "pass"),
    "V is not waited for": ("mbarrier.wait(v_full.index(0), 0)", "pass"),
    "q is not waited for": ("mbarrier.wait(q_full.index(stage), phase)", "pass"),
    "dout is not waited for": ("mbarrier.wait(dout_full.index(stage), phase)", "pass"),
    "the loader does not wait": ("mbarrier.wait(empty.index(stage), phase)", "pass"),
    "one warpgroup's word is enough": ("mbarrier.init(empty.index(stage), count=2)", "empty.index(stage).start(1)"),
    "a buffer is never given back": ("mbarrier.arrive(empty.index(stage), count=1)", "pass"),
    "the phase does not turn": ("gl.where(wraps, phase ^ 1, phase)", "phase"),
    "too few bytes": ("mbarrier.expect(q_full.index(stage), ", "mbarrier.expect(q_full.index(stage), -16 + "),
    "the other's ds is not waited for": ("mbarrier.wait(ds_full.index(", "(lambda *_, **__: None)(ds_full.index("),
    "one ds is enough": ("mbarrier.init(ds_full.index(w), count=2)", "ds_full.index(w).start(1)"),
    "one buffer of ds": ("buffer = number % 2", "buffer = 0"),
    "dq is not waited for": ("mbarrier.wait(dq_full.index(0), phase)", "pass"),
    "dq is overwritten": ("mbarrier.wait(dq_empty.index(WARPGROUP), phase, pred=is_there)", "pass"),
    "the reducer does not wait": ("tma.store_wait(0)\n            mbarrier.arrive", "mbarrier.arrive"),
    "dq's sums do not start at 0": ("tl.zeros([ROWS * 16], tl.float32)", "tl.zeros([ROWS * 16], tl.float32) + 1"),
    "dq of another tile": ("row = (first_tile + block)", "row = (first_tile + blocks_m - 1 - block)"),
    "K is overwritten while it is read": ("mbarrier.wait(k_read.index(0), 0)", "pass"),
    "scores are not waited for": ("scores = warpgroup_mma_wait(", "scores = (lambda _, deps: deps[0])("),
    "no fence": ("fence_async_shared()", "pass"),
    "mask off by one": ("eights + ones >= first_row - twos", "eights + ones > first_row - twos"),
    "too few blocks are masked": ("+ BLOCK_M - 1) // BLOCK_M - first_block", ") // BLOCK_M - first_block"),
    "keys of the last query alone": ("first_block = gl.maximum(", "first_block = blocks_m - 1 + 0 * gl.maximum("),
    "another head's queries": ("head = kv_head * group + member", "head = kv_head * group"),
    "rows that see no key count": ('lse == float("-inf"), float("inf")', 'lse == float("-inf"), float("-inf")'),
    "no scale of dk": ("dk1 * softmax_scale", "dk1"),
    "no scale of dq": ("(ROWS, 16)) * softmax_scale", "(ROWS, 16))"),
}


@pytest.mark.parametrize("order", [DqOrder.SAME_STEP, DqOrder.NEXT_STEP])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, order: DqOrder) -> None:
    spec = a_spec()
    before, after = FAULTS[fault]
    text = rendered(spec, a_config(spec, dq_order=order))
    assert before in text
    text = text.replace(before, after)

    def is_right() -> bool:
        cases = [((300, 400), 0), ((300, 65), 1), ((300, 400), 2), ((300, 400), 3)]
        return all(run(text, spec, seqlens, heads=4, kv_heads=2, seed=seed) < 1 for seqlens, seed in cases)

    with contextlib.suppress(ProtocolError):
        assert not is_right()

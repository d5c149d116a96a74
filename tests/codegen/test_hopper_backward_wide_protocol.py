"""The hopper backward of wide head dims, run on the CPU: its barrier protocol, its masks, its tails, its sums of dq."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnforge.codegen import AttentionSpec, DType, HopperBackwardConfig, Pass
from attnforge.codegen.schedules.hopper.backward_config import DqOrder
from attnforge.tuner.accuracy import check, gate_cases, prepare
from tests.codegen.gluon_pieces import ProtocolError
from tests.codegen.gluon_simulator import Machine
from tests.codegen.test_hopper_backward_protocol import SEQLENS, rendered, run

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")

ALLOWED = 2
"""Of what head dims up to 128 may be off by: dp grows with the head dim, and ds takes p from 16 bits."""
ORDERS = [DqOrder.SAME_STEP, DqOrder.BEFORE_DP]
CONFIG = HopperBackwardConfig(
    block_m=64, stages=2, dq_order=DqOrder.SAME_STEP, stats_by_tma=True, k_in_registers=False, v_in_registers=False,
    early_dv=True, anchor=False,
)  # fmt: skip


def a_spec(head_dim: int = 136, causal: bool = True, head_dim_v: int | None = None) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.BACKWARD, head_dim=head_dim, head_dim_v=head_dim_v or head_dim, causal=causal)


def text_of(spec: AttentionSpec, **changed: object) -> str:
    return rendered(spec, replace(CONFIG, **changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("seqlens", SEQLENS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_computes_the_gradients(seqlens: tuple[int, int], causal: bool, order: DqOrder) -> None:
    spec = a_spec(causal=causal)
    assert run(text_of(spec, dq_order=order), spec, seqlens) < ALLOWED


@pytest.mark.parametrize("head_dim", [136, 160, 192, 200, 256])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("early_dv", [False, True])
def test_head_dims_in_chunks(head_dim: int, order: DqOrder, early_dv: bool) -> None:
    spec = a_spec(head_dim)
    assert run(text_of(spec, dq_order=order, early_dv=early_dv), spec, (100, 130), heads=4, kv_heads=2) < ALLOWED


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (64, 256), (256, 40)])
@pytest.mark.parametrize("order", ORDERS)
def test_head_dims_that_differ(head_dim: int, head_dim_v: int, order: DqOrder) -> None:
    spec = a_spec(head_dim, head_dim_v=head_dim_v)
    assert run(text_of(spec, dq_order=order), spec, (100, 130)) < ALLOWED


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("heads", [(4, 2), (3, 1), (2, 2)])
def test_stages_and_groups(stages: int, order: DqOrder, heads: tuple[int, int]) -> None:
    spec = a_spec()
    assert run(text_of(spec, stages=stages, dq_order=order), spec, (300, 200), *heads) < ALLOWED


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("causal", [False, True])
def test_passes_the_tuners_accuracy_gate(causal: bool, order: DqOrder) -> None:
    spec = a_spec(136, causal)
    text = text_of(spec, dq_order=order)

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
    assert run(text_of(spec), spec, (70, 90), heads=4, kv_heads=2, expanded=True) < ALLOWED


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_events_gives_the_same(seed: int, order: DqOrder) -> None:
    spec = a_spec(256)
    assert run(text_of(spec, dq_order=order), spec, (400, 300), seed=seed) < ALLOWED


FAULTS = {
    "K is not waited for": ("mbarrier.wait(k_full.index(0), 0)", "pass"),
    "V is not waited for": ("mbarrier.wait(v_full.index(0), 0)", "pass"),
    "the first q is not waited for": ("mbarrier.wait(q_full.index(0), 0)", "pass"),
    "the first dout is not waited for": ("mbarrier.wait(dout_full.index(0), 0)", "pass"),
    "the next q is not waited for": ("mbarrier.wait(q_full.index((number + 1)", "(lambda *_: None)(q_full.index((number + 1)"),
    "the next dout is not waited for": (
        "mbarrier.wait(dout_full.index((number + 1)", "(lambda *_: None)(dout_full.index((number + 1)"
    ),
    "the loader does not wait": ("mbarrier.wait(empty.index(stage), phase)", "pass"),
    "one warpgroup's word is enough": ("mbarrier.init(empty.index(stage), count=2)", "empty.index(stage).start(1)"),
    "a buffer is never given back": ("mbarrier.arrive(empty.index(stage), count=1)", "pass"),
    "the phase does not turn": ("gl.where(wraps, phase ^ 1, phase)", "phase"),
    "the phase ahead is of another step": ("(number + 1) // STAGES % 2", "number // STAGES % 2"),
    "too few bytes": ("mbarrier.expect(q_full.index(stage), ", "mbarrier.expect(q_full.index(stage), -16 + "),
    "p is not waited for": ("mbarrier.wait(p_full.index(number % 2), number // 2 % 2)", "pass"),
    "ds is not waited for": ("mbarrier.wait(ds_full.index(0), number % 2)", "pass"),
    "p's phase does not turn": ("number // 2 % 2)", "0)"),
    "one buffer of p": ("p_smem.index(number % 2)", "p_smem.index(0)"),
    "p is overwritten while it is read": ("wait_for_step(empty, number - 2)", "pass"),
    "ds is overwritten while it is read": ("wait_for_step(empty, number - 1)", "pass"),
    "another step is waited for": ("wait_for_step(empty, number - 2)", "wait_for_step(empty, number - 1)"),
    "scores are not waited for": ("scores = warpgroup_mma_wait(", "scores = (lambda _, deps: deps[0])("),
    "dp is not waited for": ("dp = warpgroup_mma_wait(", "dp = (lambda _, deps: deps[0])("),
    "no fence": ("fence_async_shared()", "pass"),
    "mask off by one": ("eights + ones <= last_key - twos", "eights + ones < last_key - twos"),
    "too few blocks are masked": ("+ BLOCK_M - 1) // BLOCK_M - first_block", ") // BLOCK_M - first_block"),
    "keys of the last query alone": ("first_block = gl.maximum(", "first_block = blocks_m - 1 + 0 * gl.maximum("),
    "another head's queries": ("head = kv_head * group + member", "head = kv_head * group"),
    "dq of another head": ("dq_ptr += first_block * (ROWS * COLUMNS)", "pass"),
    "dq of another tile": ("    dq_ptr += ROWS * COLUMNS", "    pass"),
    "dq of another lane": ("rows % 8 * 16", "rows % 8 * 8"),
    "rows that see no key count": ('lse == float("-inf"), float("inf")', 'lse == float("-inf"), float("-inf")'),
    "no scale of dk": ("dk1 * softmax_scale", "dk1"),
    "no scale of dq": ("(ROWS, 64)) * softmax_scale", "(ROWS, 64))"),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, order: DqOrder) -> None:
    spec = a_spec()
    before, after = FAULTS[fault]
    # With two stages the loader's wait for a buffer is the warpgroups' too.
    text = text_of(spec, dq_order=order, stages=3)
    assert before in text
    text = text.replace(before, after)

    def is_right() -> bool:
        cases = [((300, 400), 0), ((300, 65), 1), ((300, 400), 2), ((300, 400), 3)]
        return all(run(text, spec, seqlens, heads=4, kv_heads=2, seed=seed) < ALLOWED for seqlens, seed in cases)

    with contextlib.suppress(ProtocolError):
        assert not is_right()

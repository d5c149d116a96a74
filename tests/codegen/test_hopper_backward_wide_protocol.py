"""The hopper backward of wide head dims, run on the CPU: its barrier protocol, its masks, its tails, its sums of dq."""

import contextlib

import pytest

from tests.codegen.gluon_pieces import ProtocolError
from tests.codegen.hopper_backward_runs import (
    SEQLENS,
    WIDE_CONFIG,
    a_spec,
    edited,
    gate_failures,
    is_noticed,
    orders_of_sums,
    run,
    text_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")

ALLOWED = 2
"""Of what head dims up to 128 may be off by: dp grows with the head dim, and ds takes p from 16 bits."""


@pytest.mark.parametrize("seqlens", SEQLENS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_computes_the_gradients(seqlens: tuple[int, int], causal: bool, ordered: bool) -> None:
    spec = a_spec(136, causal)
    assert run(text_of(spec, WIDE_CONFIG, ordered=ordered), spec, seqlens) < ALLOWED


@pytest.mark.parametrize("head_dim", [136, 160, 192, 200, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_head_dims_in_chunks(head_dim: int, causal: bool) -> None:
    spec = a_spec(head_dim, causal)
    assert run(text_of(spec, WIDE_CONFIG), spec, (100, 130), heads=4, kv_heads=2) < ALLOWED


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (64, 256), (256, 40)])
@pytest.mark.parametrize("ordered", [False, True])
def test_head_dims_that_differ(head_dim: int, head_dim_v: int, ordered: bool) -> None:
    spec = a_spec(head_dim, head_dim_v=head_dim_v)
    assert run(text_of(spec, WIDE_CONFIG, ordered=ordered), spec, (100, 130)) < ALLOWED


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1), (2, 2)])
def test_stages_and_groups(stages: int, ordered: bool, heads: tuple[int, int]) -> None:
    spec = a_spec(136)
    assert run(text_of(spec, WIDE_CONFIG, stages=stages, ordered=ordered), spec, (300, 200), *heads) < ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_passes_the_tuners_accuracy_gate(causal: bool) -> None:
    spec = a_spec(136, causal)
    assert gate_failures(text_of(spec, WIDE_CONFIG, ordered=causal), spec) == []


def test_expanded_heads_and_batches() -> None:
    spec = a_spec(136)
    assert run(text_of(spec, WIDE_CONFIG), spec, (70, 90), heads=4, kv_heads=2, expanded=True) < ALLOWED


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ordered", [False, True])
def test_any_order_of_events_gives_the_same(seed: int, ordered: bool) -> None:
    spec = a_spec(256)
    text = text_of(spec, WIDE_CONFIG, ordered=ordered)
    assert run(text, spec, (400, 300), seed=seed, resident=1 + 2 * seed) < ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("resident", [1, 3, 16])
@pytest.mark.parametrize("causal", [False, True])
def test_ordered_sums_of_dq_repeat_bitwise(causal: bool, resident: int) -> None:
    spec = a_spec(136, causal)
    assert orders_of_sums(text_of(spec, WIDE_CONFIG, ordered=True), spec, resident) == 1


@pytest.mark.slow
def test_sums_of_dq_in_no_order_are_told_apart() -> None:
    spec = a_spec(136)
    assert orders_of_sums(text_of(spec, WIDE_CONFIG), spec, resident=3) > 1


FAULTS = {
    "K is not waited for": {r"mbarrier.wait\(k_full.index\(0\), 0\)": "pass"},
    "V is not waited for": {r"mbarrier.wait\(v_full.index\(0\), 0\)": "pass"},
    "the first q is not waited for": {r"mbarrier.wait\(q_full.index\(0\), 0\)": "pass"},
    "the first dout is not waited for": {r"mbarrier.wait\(dout_full.index\(0\), 0\)": "pass"},
    "the next q is not waited for": {r"mbarrier.wait\(q_full.index\(\(number \+ 1.*": "pass"},
    "the next dout is not waited for": {r"mbarrier.wait\(dout_full.index\(\(number \+ 1.*": "pass"},
    "the loader does not wait": {r"mbarrier.wait\(empty.index\(stage\), phase\)": "pass"},
    "the loader's phase does not turn": {r"gl.where\(wraps, phase \^ 1, phase\)": "phase"},
    "one warpgroup's word is enough": {r"mbarrier.init\((empty.index\(stage\)), count=2\)": r"\1.start(1)"},
    "a buffer is never given back": {r"mbarrier.arrive\(empty.index\(stage\), count=1\)": "pass"},
    "a buffer is given back while it is read": {
        r"\n +mbarrier.arrive\(empty.index\(stage\), count=1\)": "",
        r"( +mbarrier.wait\(ds_full.*)": r"    mbarrier.arrive(empty.index(stage), count=1)\n\1",
        r"( +mbarrier.arrive\(ds_full.*)": r"    mbarrier.arrive(empty.index(stage), count=1)\n\1",
    },
    "the phase ahead is of another step": {r"\(number \+ 1\) // STAGES % 2": "number // STAGES % 2"},
    "another parity of dout": {r"(dout_full.index\(stage\)), number // STAGES": r"\1, 1 + number // STAGES"},
    "too few bytes": {r"mbarrier.expect\(q_full.index\(stage\), ": "mbarrier.expect(q_full.index(stage), -16 + "},
    "p is not waited for": {r"mbarrier.wait\(p_full.index\(number % 2\), number // 2 % 2\)": "pass"},
    "ds is not waited for": {r"mbarrier.wait\(ds_full.index\(0\), number % 2\)": "pass"},
    "p's phase does not turn": {r"number // 2 % 2\)": "0)"},
    "ds's phase does not turn": {r"(ds_full.index\(0\)), number % 2\)": r"\1, 0)"},
    "one buffer of p": {r"p_smem.index\(number % 2\)": "p_smem.index(0)"},
    "p is overwritten while it is read": {r"wait_for_step\(empty, number - 2\)": "pass"},
    "ds is overwritten while it is read": {r"wait_for_step\(empty, number - 1\)": "pass"},
    "another step is waited for": {r"wait_for_step\(empty, number - 2\)": "wait_for_step(empty, number - 1)"},
    "scores are not waited for": {r"scores = warpgroup_mma_wait\(": "scores = (lambda _, deps: deps[0])("},
    "dp is not waited for": {r"dp = warpgroup_mma_wait\(": "dp = (lambda _, deps: deps[0])("},
    "dv and dk are not waited for": {r"(= warpgroup_mma_wait\()(.*deps=\(dk)": r"\g<1>1 + \2"},
    "no fence behind p": {r"(store\(p.to.*\n) +fence_async_shared\(\)": r"\1"},
    "no fence behind ds": {r"(store\(ds.to.*\n) +fence_async_shared\(\)": r"\1"},
    "no fence behind dv and dk": {r"(softmax_scale\).*\n) +fence_async_shared\(\)": r"\1"},
    "mask off by one": {r"eights \+ ones <= last_key - twos": "eights + ones < last_key - twos"},
    "too few blocks are masked": {r"\+ BLOCK_M - 1\) // BLOCK_M - first_block": ") // BLOCK_M - first_block"},
    "keys of the last query alone": {r"first_block = gl.maximum\(": "first_block = blocks_m - 1 + 0 * gl.maximum("},
    "another head's queries": {r"head = kv_head \* group \+ member": "head = kv_head * group"},
    "dq of another head": {r"first_dq \+ blocks_m": "first_dq"},
    "dq of another block": {r"workspace_ptr \+ \(first_dq \+ block\)": "workspace_ptr + first_dq"},
    "dq of another lane": {r"rows % 8 \* 16": "rows % 8 * 8"},
    "rows that see no key count": {r'lse == float\("-inf"\), float\("inf"\)': 'lse == float("-inf"), float("-inf")'},
    "no scale of dk": {r"dk1 \* softmax_scale": "dk1"},
    "no scale of dq": {r"\(ROWS, 64\)\) \* softmax_scale": "(ROWS, 64))"},
}


# With two stages the loader's wait for a buffer is the warpgroups' too.
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str) -> None:
    spec = a_spec(136)
    assert is_noticed(edited(text_of(spec, WIDE_CONFIG, stages=3), FAULTS[fault]), spec, ALLOWED)


ORDER_FAULTS = {
    "nobody waits for leave to add": {r"mbarrier.wait\(may_add.*": "pass"},
    "another parity of may_add": {r"(may_add.index\(\w+\)), number % 2": r"\1, (number + 1) % 2"},
    "additions are not waited for": {r"mbarrier.wait\(added.*": "pass"},
    "counts start one too high": {r"(tl.store\(counts_ptr.*)\)\n": r"\1 + 1.0)\n"},
    "counts start one too low": {r"(tl.store\(counts_ptr.*)\)\n": r"\1 - 1.0)\n"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ORDER_FAULTS)
def test_a_fault_of_the_order_is_noticed(fault: str) -> None:
    spec = a_spec(136)
    text = edited(text_of(spec, WIDE_CONFIG, ordered=True), ORDER_FAULTS[fault])
    with contextlib.suppress(ProtocolError):
        assert orders_of_sums(text, spec, resident=12, seeds=6) > 1

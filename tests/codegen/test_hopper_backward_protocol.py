"""The hopper backward's own text, run on the CPU: its barrier protocol, its masks, its tails, its sums of dq."""

import contextlib
from typing import Any

import pytest

from tests.codegen.gluon_pieces import ProtocolError
from tests.codegen.hopper_backward_runs import (
    SEQLENS,
    a_spec,
    edited,
    gate_failures,
    is_noticed,
    orders_of_sums,
    run,
    text_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")

CONFIGS = [
    {},
    {"ping_pong": False},
    {"ordered": True, "ping_pong": False},
    {"block_m": 128, "ordered": True},
    {"block_m": 128, "kv_in_registers": True, "ping_pong": False},
    {"stages": 3, "kv_in_registers": True, "ordered": True},
]
"""Every field's values, and every pair of ping_pong, ordered and block_m."""


@pytest.mark.parametrize("seqlens", SEQLENS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("changed", CONFIGS)
def test_computes_the_gradients(seqlens: tuple[int, int], causal: bool, changed: dict[str, Any]) -> None:
    spec = a_spec(32, causal)
    assert run(text_of(spec, **changed), spec, seqlens) < 1


@pytest.mark.parametrize("heads", [(4, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("changed", [*CONFIGS, {"stages": 3}, {"stages": 4, "block_m": 128}])
def test_stages_and_groups(heads: tuple[int, int], causal: bool, changed: dict[str, Any]) -> None:
    spec = a_spec(32, causal)
    assert run(text_of(spec, **changed), spec, (300, 200), *heads) < 1


@pytest.mark.parametrize("head_dim", [24, 64, 72, 80, 96, 112, 120, 128])
@pytest.mark.parametrize("changed", CONFIGS[1:5])
def test_head_dims_in_chunks(head_dim: int, changed: dict[str, Any]) -> None:
    spec = a_spec(head_dim)
    assert run(text_of(spec, **changed), spec, (100, 130)) < 1


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(48, 80), (96, 40)])
@pytest.mark.parametrize("block_m", [64, 128])
def test_head_dims_that_differ(head_dim: int, head_dim_v: int, block_m: int) -> None:
    spec = a_spec(head_dim, head_dim_v=head_dim_v)
    assert run(text_of(spec, block_m=block_m), spec, (100, 130)) < 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("changed", [{}, {"ordered": True, "block_m": 128}])
def test_passes_the_tuners_accuracy_gate(causal: bool, changed: dict[str, Any]) -> None:
    spec = a_spec(72, causal)
    assert gate_failures(text_of(spec, **changed), spec) == []


@pytest.mark.parametrize("ordered", [False, True])
def test_expanded_heads_and_batches(ordered: bool) -> None:
    spec = a_spec(32)
    assert run(text_of(spec, ordered=ordered), spec, (70, 90), heads=4, kv_heads=2, expanded=True) < 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("changed", CONFIGS)
def test_any_order_of_events_gives_the_same(seed: int, changed: dict[str, Any]) -> None:
    spec = a_spec(80)
    assert run(text_of(spec, **changed), spec, (400, 300), seed=seed, resident=1 + 2 * seed) < 1


@pytest.mark.parametrize("resident", [1, 3, 16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("changed", [{}, {"ping_pong": False, "block_m": 128}])
def test_ordered_sums_of_dq_repeat_bitwise(causal: bool, resident: int, changed: dict[str, Any]) -> None:
    spec = a_spec(32, causal)
    assert orders_of_sums(text_of(spec, ordered=True, **changed), spec, resident) == 1


@pytest.mark.slow
@pytest.mark.parametrize("heads_together", [1, 2, 4])
def test_ordered_programs_of_some_heads_at_a_time(heads_together: int) -> None:
    """Of 6 heads: with 4 of them together the last are fewer."""
    spec = a_spec(32)
    text = edited(text_of(spec, ordered=True), {"heads_together = triton.*": f"heads_together = {heads_together}"})
    assert run(text, spec, (200, 500), heads=3, kv_heads=3, resident=3) < 1
    assert orders_of_sums(text, spec, resident=5) == 1


def test_sums_of_dq_in_no_order_are_told_apart() -> None:
    spec = a_spec(32)
    assert orders_of_sums(text_of(spec), spec, resident=3) > 1


FAULTS = {
    "K is not waited for": {r"mbarrier.wait\(k_full.index\(0\), 0\)": "pass"},
    "V is not waited for": {r"mbarrier.wait\(v_full.index\(0\), 0\)": "pass"},
    "the first q is not waited for": {r"mbarrier.wait\(q_full.index\(0\), 0\)": "pass"},
    "the next q is not waited for": {r"mbarrier.wait\(q_full.index\(following\), .*": "pass"},
    "dout is not waited for": {r"mbarrier.wait\(dout_full.index\(stage\), .*": "pass"},
    "another parity of q": {r"\(number \+ 1\) // STAGES % 2": "number // STAGES % 2"},
    "another parity of dout": {
        r"dout_full.index\(stage\), number // STAGES": "dout_full.index(stage), 1 + number // STAGES"
    },
    "another parity of ds": {r"(ds_full.index\(\(number \+ 1\) % 2\)), number // 2 % 2": r"\1, (number + 1) // 2 % 2"},
    "the loader does not wait": {r"mbarrier.wait\(empty.index\(stage\), phase\)": "pass"},
    "the loader's phase does not turn": {r"gl.where\(wraps, phase \^ 1, phase\)": "phase"},
    "one warpgroup's word is enough": {
        r"mbarrier.init\(empty.index\(stage\), count=2\)": "empty.index(stage).start(1)"
    },
    "a buffer is never given back": {r"mbarrier.arrive\(empty.index\(stage\), count=1\)": "pass"},
    "a buffer is given back while it is read": {
        r"mbarrier.arrive\(empty.index\(stage\), count=1\)": "pass",
        r"( +dqs = multiply_dq\(ds_smem, \(number .*)": r"    mbarrier.arrive(empty.index(stage), count=1)\n\1",
    },
    "too few bytes": {r"mbarrier.expect\(q_full.index\(stage\), ": "mbarrier.expect(q_full.index(stage), -16 + "},
    "the other's ds is not waited for": {r"mbarrier.wait\(ds_full.*": "pass"},
    "the last ds is not waited for": {r"mbarrier.wait\(ds_full.index\(\(steps.*": "pass"},
    "one ds is enough": {
        r"mbarrier.init\(ds_full.index\(0\), count=2\)": "ds_full.index(0).start(1)",
        r"mbarrier.init\(ds_full.index\(1\), count=2\)": "ds_full.index(1).start(1)",
    },
    "no fence behind ds": {r"(ds_smem.*store\(ds\)\n) +fence_async_shared\(\)": r"\1"},
    "no fence behind the first ds": {r"(ds_smem.*store\(gl.zeros.*\n) +fence_async_shared\(\)": r"\1"},
    "no fence behind dv and dk": {r"(softmax_scale\).*\n) +fence_async_shared\(\)": r"\1"},
    "two buffers of ds": {
        r"number % 4": "number % 2",
        r"\((number|steps) \+ 3\) % 4": r"(\1 + 1) % 2",
        r"ds_smem.index\(6 \+": "ds_smem.index(2 +",
    },
    "before the first block is some ds": {r"(ds_smem.index\(6 .*)gl.zeros\(": r"\g<1>1 + gl.zeros("},
    "dq of the block itself": {r"\(number \+ 3\) % 4": "number % 4"},
    "dq is added to the wrong block": {r"workspace_ptr \+ dq_before": "workspace_ptr + 0 * dq_before"},
    "dq of another head": {r"first_dq \+ blocks_m": "first_dq"},
    "dq of another lane": {r"rows % 8 \* 16": "rows % 8 * 8"},
    "dq's sums do not start at 0": {r"tl.zeros\(\[ROWS \* 16\], tl.float32\)": "tl.zeros([ROWS * 16], tl.float32) + 1"},
    "K is overwritten while it is read": {r"mbarrier.wait\(k_read.index\(0\), 0\)": "pass"},
    "scores are not waited for": {r"scores = warpgroup_mma_wait\(": "scores = (lambda _, deps: deps[0])("},
    "dp is not waited for": {r"dp = warpgroup_mma_wait\(": "dp = (lambda _, deps: deps[0])("},
    "dq is not waited for": {r"= warpgroup_mma_wait\(OUTSTANDING, ": "= warpgroup_mma_wait(OUTSTANDING + 1, "},
    "dv and dk are not waited for": {r"= warpgroup_mma_wait\(0, deps=\(dk": "= warpgroup_mma_wait(1, deps=(dk"},
    "mask off by one": {r"eights \+ ones >= first_row - twos": "eights + ones > first_row - twos"},
    "too few blocks are masked": {r"\+ BLOCK_M - 1\) // BLOCK_M - first_block": ") // BLOCK_M - first_block"},
    "keys of the last query alone": {r"first_block = gl.maximum\(": "first_block = blocks_m - 1 + 0 * gl.maximum("},
    "another head's queries": {r"head = kv_head \* group \+ member": "head = kv_head * group"},
    "rows that see no key count": {r'lse == float\("-inf"\), float\("inf"\)': 'lse == float("-inf"), float("-inf")'},
    "no scale of dk": {r"dk1 \* softmax_scale": "dk1"},
    "no scale of dq": {r"\(ROWS, 16\)\) \* softmax_scale": "(ROWS, 16))"},
}


@pytest.mark.parametrize("ping_pong", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: str, ping_pong: bool) -> None:
    spec = a_spec(32)
    text = edited(text_of(spec, ping_pong=ping_pong, stages=3), FAULTS[fault])
    assert is_noticed(text, spec, allowed=1)


TURN_FAULTS = {
    "nobody has the first turn": {r"if WARPGROUP == 1:\n +pass_turn\(WARPGROUP\)": "pass"},
    "the first turn is the second's": {r"if WARPGROUP == 1:(\n +pass_turn)": r"if WARPGROUP == 0:\1"},
    "a turn is kept": {r"pass_turn\(WARPGROUP\)\n    return": "return"},
    "the last turn is left over": {r"if WARPGROUP == 0:\n +wait_for_turn\(WARPGROUP\)": "pass"},
}


@pytest.mark.parametrize("fault", TURN_FAULTS)
def test_a_fault_of_the_turns_is_noticed(fault: str) -> None:
    spec = a_spec(32)
    assert is_noticed(edited(text_of(spec), TURN_FAULTS[fault]), spec, allowed=1)


ORDER_FAULTS = {
    "nobody waits for leave to add": {r"mbarrier.wait\(may_add.*": "pass"},
    "another parity of may_add": {r"(may_add.index\(\w+\)), \(number \+ 1\) % 2": r"\1, number % 2"},
    "additions are not waited for": {r"mbarrier.wait\(added.*": "pass"},
    "counts start one too high": {r"(tl.store\(counts_ptr.*)\)\n": r"\1 + 1.0)\n"},
    "counts start one too low": {r"(tl.store\(counts_ptr.*)\)\n": r"\1 - 1.0)\n"},
    "nobody counts": {r"    count_up\(.*": "    pass"},
    "programs wait for those that start later": {
        r"gl.program_id\(0\)": "(gl.num_programs(0) - 1 - gl.program_id(0))"
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("block_m", [64, 128])
@pytest.mark.parametrize("fault", ORDER_FAULTS)
def test_a_fault_of_the_order_is_noticed(fault: str, block_m: int) -> None:
    spec = a_spec(32)
    text = edited(text_of(spec, block_m=block_m, ordered=True), ORDER_FAULTS[fault])
    with contextlib.suppress(ProtocolError):
        assert orders_of_sums(text, spec, resident=12, seeds=6) > 1

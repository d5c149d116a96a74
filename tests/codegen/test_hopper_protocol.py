"""The hopper forward's own text, run on the CPU: its barrier protocol, its masks and its tails."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnforge import reference
from attnforge.codegen import (
    AttentionSpec,
    DType,
    HeadDimSplit,
    HopperForwardConfig,
    Limits,
    Pass,
    Schedule,
    Variant,
    render,
)
from attnforge.codegen.schedules import schedule_of
from attnforge.tuner.accuracy import check, gate_cases, prepare
from tests.codegen.gluon_pieces import ProtocolError
from tests.codegen.gluon_simulator import Machine

SM_90 = Limits("sm_90", 232448)
SEQLENS = [(1, 1), (64, 128), (200, 300), (300, 65), (130, 1), (257, 400)]
"""(seqlen_q, seqlen_k): tails, one block, and causal rows that see no key."""


def a_spec(head_dim: int = 32, causal: bool = True) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)


def a_config(spec: AttentionSpec, **changed: object) -> HopperForwardConfig:
    config = schedule_of(Schedule.HOPPER, Pass.FORWARD).default(spec, DType.FP16, SM_90)
    assert isinstance(config, HopperForwardConfig)
    plain: dict[str, object] = {
        "warpgroups": 2,
        "block_n": 64,
        "stages": 2,
        "q_stages": 1,
        "anchor": True,
        "persistent": False,
    }
    return replace(config, **plain | changed)  # type: ignore[arg-type]


def rendered(spec: AttentionSpec, config: HopperForwardConfig) -> str:
    return render(Variant(spec, Schedule.HOPPER, config))


def run(
    text: str, spec: AttentionSpec, seqlens: tuple[int, int], programs: int | None = None, heads: int = 2,
    kv_heads: int = 1, seed: int = 0, expanded: bool = False,
) -> float:  # fmt: skip
    """The largest error of out and of exp(LSE), as a part of what is allowed; infinite where one of them is NaN."""
    torch.manual_seed(seed)
    seqlen_q, seqlen_k = seqlens
    q = torch.randn(2, heads, seqlen_q, spec.head_dim).half()
    k, v = torch.randn(2, 2, seqlen_k, kv_heads, spec.head_dim).half().transpose(2, 3)  # (B, S, H, D) in memory
    if expanded:
        q, k, v = (
            q[:1].expand(2, -1, -1, -1),
            k[:, :1].expand(-1, kv_heads, -1, -1),
            v[:1, :1].expand(2, kv_heads, -1, -1),
        )
    out, lse = torch.full(q.shape, torch.nan).half(), torch.full(q.shape[:3], torch.nan)
    machine = Machine(seed)
    ((kernel, grid, tensors, scalars, _),) = machine.module(text).plan(q, k, v, out, lse, 0.3)
    machine.launch(kernel, programs or grid[0], *tensors, *scalars)
    expected = reference.attention(q, k, v, causal=spec.causal, softmax_scale=0.3)
    error_out = (out - expected.out).abs() / (2e-3 + 2e-3 * expected.out.abs())
    error_lse = (lse.exp() - expected.lse.exp()).abs() / (1e-4 * expected.lse.exp()).clamp_min(1e-30)
    return max(float(error.nan_to_num(torch.inf).max()) for error in (error_out, error_lse))


@pytest.mark.parametrize("seqlens", SEQLENS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize(
    ("warpgroups", "ping_pong", "overlap"), [(2, True, True), (3, True, True), (4, True, True), (2, False, False)]
)
def test_computes_attention(
    seqlens: tuple[int, int], causal: bool, stages: int, warpgroups: int, ping_pong: bool, overlap: bool
) -> None:
    spec = a_spec(causal=causal)
    config = a_config(spec, stages=stages, warpgroups=warpgroups, ping_pong=ping_pong, overlap=overlap, anchor=overlap)
    assert run(rendered(spec, config), spec, seqlens) < 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize(("overlap", "q_stages"), [(False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize("seqlens", [(300, 200), (130, 400), (400, 130), (70, 70)])
def test_programs_that_walk_over_tiles(
    causal: bool, programs: int, overlap: bool, q_stages: int, seqlens: tuple[int, int]
) -> None:
    spec = a_spec(causal=causal)
    config = a_config(spec, persistent=True, overlap=overlap, anchor=overlap, q_stages=q_stages)
    assert run(rendered(spec, config), spec, seqlens, programs, heads=4, kv_heads=2) < 1


@pytest.mark.parametrize("heads_together", [2, 3, 8])
@pytest.mark.parametrize("programs", [None, 1, 3, 5])
def test_tiles_of_several_heads_in_turn(heads_together: int, programs: int | None) -> None:
    spec = a_spec()
    config = a_config(spec, heads_together=heads_together, persistent=programs is not None)
    assert run(rendered(spec, config), spec, (300, 400), programs, heads=4) < 1


@pytest.mark.parametrize("head_dim", [16, 72, 80, 112, 120])
@pytest.mark.parametrize("split", HeadDimSplit)
def test_head_dims_in_chunks_or_padded(head_dim: int, split: HeadDimSplit) -> None:
    spec = a_spec(head_dim)
    assert run(rendered(spec, a_config(spec, head_dim_split=split)), spec, (100, 130)) < 1


@pytest.mark.parametrize("causal", [False, True])
def test_passes_the_tuners_accuracy_gate(causal: bool) -> None:
    spec = a_spec(72, causal)
    text = rendered(spec, a_config(spec))

    def launch(*arguments: Any) -> None:
        machine = Machine(0)
        ((kernel, grid, tensors, scalars, _),) = machine.module(text).plan(*arguments)
        machine.launch(kernel, grid[0], *tensors, *scalars)

    for case in gate_cases(spec, DType.FP16, tile=128):
        report = check(launch, prepare(case, torch.device("cpu")))
        assert report.failure is None


def test_expanded_heads_and_batches() -> None:
    spec = a_spec()
    assert run(rendered(spec, a_config(spec)), spec, (70, 90), heads=4, kv_heads=2, expanded=True) < 1


@pytest.mark.parametrize("seqlens", [(256, 256), (128, 384), (384, 128), (200, 328)])
def test_causal_tiles_whose_diagonal_lies_in_one_block(seqlens: tuple[int, int]) -> None:
    spec = a_spec()
    text = rendered(spec, replace(a_config(spec), block_n=128))
    assert run(text, spec, seqlens) < 1


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_events_gives_the_same(seed: int) -> None:
    spec = a_spec(80)
    assert run(rendered(spec, a_config(spec, warpgroups=3)), spec, (400, 300), seed=seed) < 1


FAULTS = {
    "K is not waited for": ("mbarrier.wait(k_full.index(k_stage), k_phase)", "pass"),
    "V is not waited for": ("mbarrier.wait(v_full.index(v_stage), v_phase)", "pass"),
    "Q is not waited for": ("mbarrier.wait(q_full.index(q_buffer), q_phase)", "pass"),
    "K is never given back": ("mbarrier.arrive(k_empty.index(k_stage), count=1)", "pass"),
    "V is given back twice": ("mbarrier.arrive(v_empty.index(v_stage), count=1)", "v_empty.index(v_stage).arrive(2)"),
    "the producer does not wait": ("mbarrier.wait(empty.index(stage), phase)", "pass"),
    "the phase does not turn": ("gl.where(wraps, phase ^ 1, phase)", "phase"),
    "one consumer is enough": ("count=WARPGROUPS", "count=1"),
    "too few bytes": ("mbarrier.expect(full.index(stage), 4096)", "mbarrier.expect(full.index(stage), 2048)"),
    "the scores are not waited for": ("scores = warpgroup_mma_wait(1, deps=(scores,))", "pass"),
    "the output is not waited for": ("acc = warpgroup_mma_wait(0, deps=(acc,))", "pass"),
    "turns are not passed on": ('named_barrier("arrive", (WARPGROUP + 1) % WARPGROUPS)', "pass"),
    "the first turn is nobody's": ("pass_turn(WARPGROUP)  # the first turn", "pass"),
    "the last turn is left": ("wait_for_turn(WARPGROUP)  # the last turn, which nobody takes", "pass"),
    "halves of a pair exchanged": ("gl.join(even, odd)", "gl.join(odd, even)"),
    "no fence": ("fence_async_shared()", "pass"),
    "mask off by one": ("columns <= limit", "columns < limit"),
    "the tail of a masked block": ("(end + BLOCK_N - 1) // BLOCK_N", "end // BLOCK_N"),
    "an infinite start": ("-1.0e30", 'float("-inf")'),
    "no rescale": ("acc = acc * rows_of(rescale, acc)", "pass"),
    "another head's keys": ("kv_head = head // group", "kv_head = 0"),
    "tiles reach past the last": ("tiles = triton.cdiv(seqlen_q, block_m)", "tiles = (seqlen_q // block_m)"),
}

PERSISTENT_FAULTS = {
    "the output's buffer is given back too early": ("tma.store_wait(0)", "pass"),
    "Q is fetched into a buffer in use": ("nth // 2 & 1 ^ nth & 1 ^ 1", "nth // 2 & 1 ^ 1"),
    "Q's buffer is not given back": (
        "mbarrier.arrive(q_empty.index((nth + 1) % 2 * WARPGROUPS + WARPGROUP), count=1)",
        "pass",
    ),
    "a pair's second tile is left out": ("nth // 2 * gl.num_programs(0)", "nth * gl.num_programs(0)"),
    "the longest tiles are left out": ("2 * pairs - 1 - pair % pairs", "2 * pairs - 3 - pair % pairs"),
}


@pytest.mark.parametrize("fault", [*FAULTS, *PERSISTENT_FAULTS])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_a_fault_is_noticed(fault: str) -> None:
    spec = a_spec()
    is_persistent = fault in PERSISTENT_FAULTS
    before, after = (FAULTS | PERSISTENT_FAULTS)[fault]
    text = rendered(spec, a_config(spec, persistent=is_persistent, q_stages=1 + is_persistent))
    assert before in text
    text = text.replace(before, after)

    def is_right() -> bool:
        programs = 2 if is_persistent else None
        return all(run(text, spec, seqlens, programs, heads=4, kv_heads=2) < 1 for seqlens in ((300, 400), (300, 65)))

    with contextlib.suppress(ProtocolError):
        assert not is_right()

import pytest
import torch

from attnforge.codegen import DType, Pass
from attnforge.reference import attention, last_visible_key
from attnforge.tuner.accuracy_inputs import GUARD, Case, Family, Layout, Output, allocate, make_inputs
from tests.numerics.rendered import spec_of

CPU = torch.device("cpu")


def case_of(*families, causal=True, seqlen_q=45, seqlen_k=70, head_dim=64, **options):
    spec = spec_of(Pass.FORWARD, head_dim, 40, causal=causal)
    return Case(
        spec=spec, dtype=DType.FP32, seqlen_q=seqlen_q, seqlen_k=seqlen_k, families=families, **{"heads": 4, **options}
    )


def probabilities(case):
    inputs = make_inputs(case, CPU)
    scores = inputs.q @ inputs.k.repeat_interleave(case.heads // case.kv_heads, 1).mT * case.softmax_scale
    last_key = last_visible_key(case.seqlen_q, case.seqlen_k)[:, None]
    hidden = torch.arange(case.seqlen_k) > (last_key if case.spec.causal else case.seqlen_k)
    return scores, scores.masked_fill(hidden, float("-inf")).softmax(-1)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_a_needle_outweighs_all_other_keys(causal, kv_heads):
    case = case_of(Family.NEEDLE, causal=causal, kv_heads=kv_heads)
    _, p = probabilities(case)
    last = last_visible_key(45, 70) if causal else torch.full((45,), 69)
    rows = torch.arange(45)
    assert (p[0, :, rows[0::4], last[0::4]] > 0.9).all()
    assert (p[0, :, rows[1::4], 0] > 0.9).all()
    assert (p[0, :, rows[2::4], last[2::4] * 2 // 3] > 0.9).all()


def test_a_needle_behind_the_mask_would_outweigh_all_if_it_leaked():
    scores, _ = probabilities(case_of(Family.NEEDLE, causal=True))
    rows = torch.arange(3, 44, 4)
    leaked = scores[0, :, rows, rows + 70 - 45 + 1]
    assert (leaked > 13).all()


def test_large_logits_reach_eighty_of_both_signs():
    scores, p = probabilities(case_of(Family.LARGE_LOGITS))
    assert 75 < scores.max() < 95
    assert -95 < scores.min() < -75
    assert p.max(-1).values.median() < 0.9


def test_equal_keys_have_equal_weights():
    _, p = probabilities(case_of(Family.EQUAL_KEYS, causal=False))
    torch.testing.assert_close(p, torch.full_like(p, 1 / 70))


def test_one_hot_values_show_each_key():
    inputs = make_inputs(case_of(Family.ONE_HOT_VALUES), CPU)
    assert (inputs.v.sum(-1) == 1).all()
    assert (inputs.v.argmax(-1) == torch.arange(70) % 40).all()


def test_nan_lies_in_keys_that_the_checked_rows_do_not_see():
    case = case_of(Family.NORMAL, Family.NAN_IN_FUTURE_KEYS)
    inputs = make_inputs(case, CPU)
    last_seen = case.last_checked_row + 70 - 45
    assert inputs.k[0].isfinite().all()
    assert inputs.k[1, :, : last_seen + 1].isfinite().all()
    assert inputs.k[1, :, last_seen + 1 :].isnan().all()
    assert inputs.v.isfinite().all()
    out = attention(inputs.q, inputs.k.nan_to_num(nan=1e3), inputs.v, causal=True).out
    zeroed = attention(inputs.q, inputs.k.nan_to_num(nan=0.0), inputs.v, causal=True).out
    torch.testing.assert_close(out[:, :, : case.last_checked_row + 1], zeroed[:, :, : case.last_checked_row + 1])


def test_future_keys_exist_in_a_causal_forward_only():
    assert Family.NAN_IN_FUTURE_KEYS in Family.of(spec_of(Pass.FORWARD, 64, causal=True))
    assert Family.NAN_IN_FUTURE_KEYS not in Family.of(spec_of(Pass.FORWARD, 64, causal=False))
    assert Family.NAN_IN_FUTURE_KEYS not in Family.of(spec_of(Pass.BACKWARD, 64, causal=True))


def test_inputs_are_the_same_each_time_and_differ_between_cases():
    first, again = (make_inputs(case_of(Family.NORMAL), CPU) for _ in range(2))
    other = make_inputs(case_of(Family.NORMAL, seqlen_k=71), CPU)
    assert torch.equal(first.q, again.q)
    assert not torch.equal(first.q, other.q)


@pytest.mark.parametrize("layout", Layout)
def test_layouts(layout):
    case = case_of(Family.NORMAL, Family.NEEDLE, kv_heads=2, layout=layout)
    inputs = make_inputs(case, CPU)
    for x in (inputs.q, inputs.k, inputs.v, inputs.dout):
        assert x.stride(-1) == 1
        assert x.isfinite().all()
    assert inputs.k.shape == (2, 2, 70, 64)
    assert inputs.q.is_contiguous() == (layout in (Layout.PACKED, Layout.EXPANDED))
    assert (inputs.k.stride(1) == 0) == (layout is Layout.EXPANDED)


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.BSHD, Layout.PADDED])
def test_inputs_are_surrounded_by_nan(layout):
    memory, tensor = allocate((2, 3, 5, 16), torch.float32, CPU, layout, float("nan"))
    tensor.zero_()
    assert memory.isfinite().sum() == tensor.numel()
    start = tensor.storage_offset()
    end = start + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    assert memory.flatten()[:start].isnan().all()
    assert memory.flatten()[end + 1 :].isnan().all()
    assert start > 0
    assert end + 1 < memory.numel()


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.BSHD, Layout.PADDED])
def test_an_output_notices_what_is_written_around_it(layout):
    output = Output.empty((2, 3, 5, 16), torch.float16, CPU, layout)
    assert output.tensor.isnan().all()
    output.tensor.fill_(GUARD)
    assert output.overwritten() == 0
    output.memory.view(-1)[output.tensor.storage_offset() - 1] = float("nan")
    assert output.overwritten() == 1
    assert (output.tensor == GUARD).all()

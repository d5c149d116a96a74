"""The rules, tried on launches in plain torch: right ones pass in every dtype, each seeded fault breaks one."""

import pytest
import torch

from attnforge.codegen import DType, Pass
from attnforge.tuner import accuracy_rules
from attnforge.tuner.accuracy import check, gate_cases, prepare
from attnforge.tuner.accuracy_inputs import Case, Family, Layout
from attnforge.tuner.accuracy_rules import AccuracyReport, Finding, Rule
from tests.numerics.rendered import spec_of
from tests.numerics.tiled_attention import BACKWARD_FAULTS, FORWARD_FAULTS, Fault, TiledAttention

CPU = torch.device("cpu")
CAUSAL_ONLY = {Fault.MASK_TOO_WIDE, Fault.MASK_TOO_NARROW, Fault.MASK_BY_PRODUCT, Fault.UNSEEING_MEAN}
FAULTS = [
    *((Pass.FORWARD, fault) for fault in FORWARD_FAULTS if fault is not Fault.NONE),
    *((Pass.BACKWARD, fault) for fault in BACKWARD_FAULTS if fault is not Fault.NONE),
]


def gate(pass_, dtype, fault, *, head_dim=64, causal=True, tile=48):
    spec = spec_of(pass_, head_dim, causal=causal)
    cases = gate_cases(spec, dtype, tile=tile)
    return AccuracyReport.merged(check(TiledAttention(case, fault), prepare(case, CPU)) for case in cases)


@pytest.mark.parametrize("head_dim", [16, 40, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("pass_", Pass)
def test_right_results_are_accepted(pass_, dtype, causal, head_dim):
    report = gate(pass_, dtype, Fault.NONE, head_dim=head_dim, causal=causal)
    assert report.ok, report.message
    assert "checks passed" in report.message


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
@pytest.mark.parametrize(("pass_", "fault"), FAULTS)
def test_each_fault_is_rejected(pass_, fault, dtype):
    report = gate(pass_, dtype, fault)
    assert not report.ok, f"nothing noticed: {fault}"
    assert report.failure is not None
    assert str(report.failure.rule) in report.message


@pytest.mark.parametrize(("pass_", "fault"), [(p, f) for p, f in FAULTS if f not in CAUSAL_ONLY])
def test_each_fault_is_rejected_without_a_mask(pass_, fault):
    assert not gate(pass_, DType.BF16, fault, causal=False).ok


@pytest.mark.parametrize("pass_", Pass)
def test_fp32_means_more_than_tf32(pass_):
    assert not gate(pass_, DType.FP32, Fault.TF32).ok


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (Fault.WRITES_PAST_END, Rule.GUARD),
        (Fault.UNWRITTEN_ROW, Rule.WRITTEN),
        (Fault.MASK_BY_PRODUCT, Rule.WRITTEN),
        (Fault.UNSEEING_MEAN, Rule.UNSEEING),
        (Fault.LSE_BASE_2, Rule.LSE),
        (Fault.SCALE, Rule.LSE),
        (Fault.LAST_RESCALE, Rule.RELATIVE_L2),
    ],
)
def test_the_report_names_the_rule_that_explains_most(fault, rule):
    failure = gate(Pass.FORWARD, DType.FP16, fault).failure
    assert failure is not None
    assert failure.rule is rule


def single_queries(dtype):
    """32 batch elements of a query over equal keys, whose dq is 0 but for rounding; and their prepared references."""
    case = Case(
        spec=spec_of(Pass.BACKWARD, 72, causal=False), dtype=dtype, seqlen_q=1, seqlen_k=513,
        families=(Family.EQUAL_KEYS,) * 32,
    )  # fmt: skip
    return case, prepare(case, CPU)


def rejected(report):
    """Batch elements whose dq has too large a relative L2 error."""
    errors = [finding for finding in report.findings if (finding.tensor, finding.rule) == ("dq", Rule.RELATIVE_L2)]
    return sum(not error.ok for error in errors)


def test_a_gradient_of_nothing_but_rounding_is_accepted(monkeypatch):
    case, prepared = single_queries(DType.BF16)
    report = check(TiledAttention(case), prepared)
    assert report.ok, report.message
    monkeypatch.setattr(accuracy_rules, "OPERAND_ROUNDING", 0.0)
    assert rejected(check(TiledAttention(case), prepare(case, CPU))) > 0


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_a_gradient_that_cancels_still_shows_an_error_above_its_rounding(dtype):
    case, prepared = single_queries(dtype)

    class Shifted(TiledAttention):
        def __call__(self, *arguments):
            super().__call__(*arguments)
            k, dq = arguments[2], arguments[6]
            shape = (-1, 1, 1, 1)
            sizes = torch.linalg.vector_norm(prepared.expected["dq"].flatten(1), dim=1) * prepared.allowed_l2["dq"]
            along = k[:, :, :1].expand_as(dq).double()
            norms = torch.linalg.vector_norm(along.flatten(1), dim=1)
            dq.copy_(dq + 2 * (sizes / norms).view(shape) * along)

    assert rejected(check(Shifted(case), prepared)) == 32
    # The missing key's ds may happen to be small.
    assert rejected(check(TiledAttention(case, Fault.DQ_MISSES_KEY), prepared)) >= 24


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
@pytest.mark.parametrize("causal", [False, True])
def test_where_nothing_cancels_the_limit_stays(causal, dtype, monkeypatch):
    case = gate_cases(spec_of(Pass.BACKWARD, 64, causal=causal), dtype)[0]
    limits = prepare(case, CPU).allowed_l2
    monkeypatch.setattr(accuracy_rules, "OPERAND_ROUNDING", 0.0)
    without = prepare(case, CPU).allowed_l2
    equal_keys = case.families.index(Family.EQUAL_KEYS)
    for name, limit in limits.items():
        higher = (limit > without[name]).nonzero().flatten().tolist()
        assert set(higher) <= ({equal_keys} if name == "dq" else set())


def test_a_launch_that_changes_its_mind_is_not_repeatable():
    case = Case(
        spec=spec_of(Pass.FORWARD, 16, causal=False), dtype=DType.FP16, seqlen_q=40, seqlen_k=40,
        families=(Family.NORMAL,),
    )  # fmt: skip

    class Drifting(TiledAttention):
        calls = 0

        def __call__(self, *arguments):
            super().__call__(*arguments)
            self.calls += 1
            if self.calls == 3:
                arguments[3][0, 0, 0, 0].add_(2**-9)

    prepared = prepare(case, CPU)
    assert check(TiledAttention(case), prepared, repeats=3).ok
    failure = check(Drifting(case), prepared, repeats=3).failure
    assert failure is not None
    assert failure.rule is Rule.REPEATABLE
    assert failure.measured == 1


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("pass_", Pass)
def test_every_layout_can_be_checked(pass_, layout):
    case = Case(
        spec=spec_of(pass_, 24, 40, causal=True), dtype=DType.BF16, seqlen_q=33, seqlen_k=50, heads=6, kv_heads=3,
        families=(Family.NORMAL, Family.NEEDLE), layout=layout,
    )  # fmt: skip
    report = check(TiledAttention(case), prepare(case, CPU))
    assert report.ok, report.message


def test_the_message_says_what_where_and_by_how_much():
    finding = Finding(Rule.LSE, "lse", "forward_d64_full bfloat16 q96 k96 h2/1 packed", Family.NEEDLE, 0.0207, 1e-4)
    assert AccuracyReport((finding,)).message == (
        "lse of forward_d64_full bfloat16 q96 k96 h2/1 packed, needle inputs: "
        "the LSE must be that of the reference (measured 0.0207, allowed 0.0001)"
    )


def test_nan_breaks_every_rule():
    assert not Finding(Rule.MAX_ERROR, "out", "case", "family", float("nan"), 1.0).ok


def test_no_matter_how_wide_the_tile_all_cases_have_blocks_and_tails():
    for tile in (16, 32, 64, 128, 256):
        whole, *tails = gate_cases(spec_of(Pass.FORWARD, 64, causal=True), DType.BF16, tile=tile, deep=True)
        assert whole.seqlen_q % tile == whole.seqlen_k % tile == 0
        assert all(case.seqlen_q % tile or case.seqlen_k % tile for case in tails)
        assert any(case.seqlen_q > case.seqlen_k for case in tails)
        assert any(case.seqlen_q < case.seqlen_k for case in tails)

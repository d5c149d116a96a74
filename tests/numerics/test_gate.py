"""The gate on real kernels, in the interpreter: the installed templates pass, copies with seeded faults do not."""

import pytest

from attnforge.codegen import DType, HeadDimSplit, Pass
from attnforge.tuner.accuracy import gate
from tests.numerics.rendered import TILE, faulty_templates, load, spec_of, variant_of

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

FORWARD_FAULTS = {
    "scores 1 % too large": {"softmax_scale * LOG2_E": "softmax_scale * 1.01 * LOG2_E"},
    "the denominator misses a key": {"tl.sum(p, 1)": "(tl.sum(p, 1) - tl.min(p, 1))"},
    "the last rescale is missing": {
        "* rescale[:, None]": "* tl.where(start_n + BLOCK_N < end, rescale, 1.0)[:, None]",
    },
    "the last block is skipped": {"tl.range(start, end, BLOCK_N)": "tl.range(start, end - BLOCK_N, BLOCK_N)"},
    "the tail is skipped": {"tl.range(start, end, BLOCK_N)": "tl.range(start, end // BLOCK_N * BLOCK_N, BLOCK_N)"},
    "the mask lets one more key in": {"rows + (seqlen_k - seqlen_q)": "rows + 1 + (seqlen_k - seqlen_q)"},
    "the mask leaves one key out": {"rows + (seqlen_k - seqlen_q)": "rows - 1 + (seqlen_k - seqlen_q)"},
    "causal is aligned top-left": {"rows + (seqlen_k - seqlen_q)": "rows"},
    "the LSE is in units of log2": {"(m_i + tl.math.log2(l_i)) * LN_2": "m_i + tl.math.log2(l_i)"},
    "rows that see no key divide by zero": {"tl.where(sees_a_key, l_i, 1.0)": "l_i"},
    "heads take the wrong kv head": {"kv_head = head // group": "kv_head = head % (heads // group)"},
}
BACKWARD_FAULTS = {
    "delta is missing in dk": {"(dp_t - delta[None, :])": "dp_t"},
    "delta is missing in dq": {"(dp - delta[:, None])": "dp"},
    "dk is not scaled": {"dk{{ c.suffix }} * softmax_scale": "dk{{ c.suffix }}"},
    "dq is not scaled": {"dq{{ c.suffix }} * softmax_scale": "dq{{ c.suffix }}"},
    "dk and dv miss the tail of the queries": {
        "end = tl.cdiv(seqlen_q, DKDV_BLOCK_M) * DKDV_BLOCK_M": "end = seqlen_q // DKDV_BLOCK_M * DKDV_BLOCK_M",
    },
    "dq misses the tail of the keys": {
        "tl.range(start, end, DQ_BLOCK_N)": "tl.range(start, end // DQ_BLOCK_N * DQ_BLOCK_N, DQ_BLOCK_N)",
    },
    "the mask of dk and dv lets one more row in": {
        "first_row = keys - (seqlen_k": "first_row = keys - 1 - (seqlen_k",
    },
    "the mask of dk and dv leaves one row out": {"first_row = keys - (seqlen_k": "first_row = keys + 1 - (seqlen_k"},
    "the mask of dq lets one more key in": {"rows + (seqlen_k - seqlen_q)": "rows + 1 + (seqlen_k - seqlen_q)"},
    "the mask of dq leaves one key out": {"rows + (seqlen_k - seqlen_q)": "rows - 1 + (seqlen_k - seqlen_q)"},
    "dk and dv take one head of the group": {"for member in range(GROUP)": "for member in range(1)"},
    "the LSE is not in units of log2": {"lse * LOG2_E": "lse"},
    "scores 1 % too large": {"scale_log2 = softmax_scale * LOG2_E": "scale_log2 = softmax_scale * 1.01 * LOG2_E"},
}
SHARED_FAULTS = {
    "rows past the end are written": {"tl.store(pointers, tile, mask=rows_inside)": "tl.store(pointers, tile)"},
    "columns past the head dim are written": {"rows_inside & columns_inside)": "rows_inside)"},
    "what lies past the end is read": {"if MASK_ROWS and MASK_COLUMNS:": "if False:", "elif MASK_ROWS:": "elif False:"},
}
FAULTS = [
    *(("parts/tiles.py.jinja", pass_, fault, text) for pass_ in Pass for fault, text in SHARED_FAULTS.items()),
    *(("portable_forward.py.jinja", Pass.FORWARD, fault, text) for fault, text in FORWARD_FAULTS.items()),
    *(("portable_backward.py.jinja", Pass.BACKWARD, fault, text) for fault, text in BACKWARD_FAULTS.items()),
]


@pytest.mark.parametrize(
    ("template", "pass_", "substitutions"),
    [pytest.param(template, pass_, text, id=f"{pass_}: {fault}") for template, pass_, fault, text in FAULTS],
)
def test_a_fault_in_a_template_is_rejected(template, pass_, substitutions, tmp_path):
    templates = faulty_templates(tmp_path, template, substitutions)
    spec = spec_of(pass_, 40, causal=True)
    report = gate(load(variant_of(spec), templates), spec, DType.FP16, "cpu", tile=TILE)
    assert not report.ok, "nothing noticed"


@pytest.mark.parametrize("dtype", [DType.FP16, DType.FP32])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pass_", Pass)
def test_the_installed_templates_are_accepted(pass_, causal, dtype):
    spec = spec_of(pass_, 40, causal=causal)
    report = gate(load(variant_of(spec, split=HeadDimSplit.PADDED)), spec, dtype, "cpu", tile=TILE)
    assert report.ok, report.message


def test_the_installed_forward_is_accepted_by_the_deep_gate():
    spec = spec_of(Pass.FORWARD, 24, causal=True)
    report = gate(load(variant_of(spec, TILE, TILE)), spec, DType.FP16, "cpu", deep=True, tile=TILE)
    assert report.ok, report.message

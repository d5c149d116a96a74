"""The grid itself, which needs no GPU: it holds every value that numerics.md lists, against each other's extremes."""

from attnforge.codegen import DType, Pass
from attnforge.tuner.accuracy_inputs import Layout
from tests.gpu.numerics_grid import ROWS, SEQLENS, cases_of
from tests.numerics.rendered import spec_of


def test_the_grid_holds_every_value():
    assert {row[0] for row in ROWS} >= {16, 32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256}
    assert {row[4] for row in ROWS} == set(DType)
    spec = spec_of(Pass.FORWARD, 64, causal=True)
    cases = [case for index in range(len(ROWS)) for case in cases_of(index, spec, DType.BF16)]
    pairs = {(case.seqlen_q, case.seqlen_k) for case in cases}
    for seqlen in SEQLENS:
        assert len({k for q, k in pairs if q == seqlen}) >= 3
        assert {seqlen} < {k for q, k in pairs if q == seqlen} | {q for q, k in pairs if k == seqlen}
    assert {(case.heads // case.kv_heads, case.layout) for case in cases} >= {
        (ratio, layout) for ratio in (1, 4, 8) for layout in Layout
    }

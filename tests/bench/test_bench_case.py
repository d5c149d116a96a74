"""The grid, and the operations that TFLOP/s are counted by."""

import pytest

from attnforge.bench.case import BadCaseError, Case, grid
from attnforge.codegen import DType, Pass


def test_default_grid_is_the_one_of_the_bars():
    cases = grid()
    assert len(cases) == 3 * 2 * 3
    assert {(c.head_dim, c.causal, c.seqlen) for c in cases} == {
        (d, causal, s) for d in (64, 128, 256) for causal in (False, True) for s in (1024, 4096, 16384)
    }
    assert all(c.batch * c.seqlen == 16384 and c.heads * c.head_dim == 2048 for c in cases)
    assert all(c.dtype is DType.BF16 and c.kv_heads == c.heads for c in cases)


def test_longer_sequences_than_the_tokens_still_have_a_batch():
    assert grid(head_dims=[64], seqlens=[65536], causal=[True])[0].batch == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"head_dims": [4096]}, "--head-dim 4096"),
        ({"seqlens": [0]}, "--seqlen 0"),
        ({"heads": 0}, "--heads 0"),
        ({"head_dims": [80], "heads": 16, "kv_heads": 3}, "--kv-heads 3: head dim 80 has 16 heads"),
        ({"head_dims": [128], "kv_heads": 3}, "--kv-heads 3: head dim 128 has 16 heads"),
    ],
)
def test_an_impossible_grid_names_the_option(options, named):
    with pytest.raises(BadCaseError, match=named):
        grid(**options)


@pytest.mark.parametrize(("causal", "forward"), [(False, 4 * 2 * 3 * 10**2 * 64), (True, 2 * 2 * 3 * 10**2 * 64)])
def test_operations_follow_the_convention(causal, forward):
    case = Case(batch=2, heads=3, kv_heads=3, seqlen=10, head_dim=64, causal=causal, dtype=DType.FP16)
    assert case.operations(Pass.FORWARD) == forward
    assert case.operations(Pass.BACKWARD) == 2.5 * forward

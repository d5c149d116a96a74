import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnforge.codegen import DType
from attnforge.errors import UnsupportedInputError
from attnforge.problem import Bucket, Problem

SIZES = {"batch": 2, "heads": 8, "kv_heads": 4, "seqlen_q": 100, "seqlen_k": 1000}

problems = st.builds(
    lambda batch, kv_heads, group, seqlen_q, seqlen_k, dtype: Problem(
        batch=batch,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        dtype=dtype,
    ),
    st.integers(1, 300),
    st.integers(1, 128),
    st.integers(1, 16),
    st.integers(1, 2**20),
    st.integers(1, 2**20),
    st.sampled_from(DType),
)


def test_a_problem_is_read_from_tensors():
    q = torch.empty(2, 8, 100, 64, dtype=torch.float16, device="meta")
    k = torch.empty(2, 4, 1000, 64, dtype=torch.float16, device="meta")
    v = torch.empty(2, 4, 1000, 128, dtype=torch.float16, device="meta")
    assert Problem.of_tensors(q, k, v) == Problem(**SIZES, dtype=DType.FP16)


@pytest.mark.parametrize("size", SIZES)
def test_a_size_below_one_is_named(size):
    with pytest.raises(UnsupportedInputError, match=rf"{size}: got 0; supported: at least 1"):
        Problem(**SIZES | {size: 0}, dtype=DType.FP16)


def test_heads_must_be_a_multiple_of_kv_heads():
    with pytest.raises(UnsupportedInputError, match="kv_heads: got 3"):
        Problem(**SIZES | {"kv_heads": 3}, dtype=DType.FP16)


def test_edges_must_be_powers_of_two():
    with pytest.raises(UnsupportedInputError, match="seqlen_q"):
        Bucket(dtype=DType.FP16, batch_heads=16, seqlen_q=100, seqlen_k=128)


def test_a_bucket_rounds_up():
    assert Bucket.of(Problem(**SIZES, dtype=DType.FP16)) == Bucket(
        dtype=DType.FP16, batch_heads=16, seqlen_q=128, seqlen_k=1024
    )
    assert Bucket.of(Problem(**SIZES, dtype=DType.FP16)).name == "float16_bh16_q128_k1024"


@settings(deadline=None)
@given(problems)
def test_a_problem_lies_within_the_edges_of_its_bucket(problem):
    bucket = Bucket.of(problem)
    for size, edge in (
        (problem.batch * problem.heads, bucket.batch_heads),
        (problem.seqlen_q, bucket.seqlen_q),
        (problem.seqlen_k, bucket.seqlen_k),
    ):
        assert edge // 2 < size <= edge


@settings(deadline=None)
@given(problems, problems)
def test_distance_is_zero_at_home_only_and_the_same_both_ways(one, other):
    here, there = Bucket.of(one), Bucket.of(other)
    assert here.distance(there) == there.distance(here)
    assert (here.distance(there) == 0) == (here == there)


@settings(deadline=None)
@given(problems, problems)
def test_entries_do_not_carry_over_between_dtypes_of_different_size(one, other):
    here, there = Bucket.of(one), Bucket.of(other)
    assert (here.distance(there) is None) == (one.dtype.bytes != other.dtype.bytes)


def test_a_step_in_seqlen_is_further_than_one_in_batch_and_that_than_another_dtype():
    home = Bucket(dtype=DType.BF16, batch_heads=64, seqlen_q=1024, seqlen_k=1024)
    distances = [
        home.distance(msgspec.structs.replace(home, **change))
        for change in ({"dtype": DType.FP16}, {"batch_heads": 32}, {"seqlen_k": 2048})
    ]
    assert distances == sorted(set(distances))


def test_problems_and_buckets_are_keys():
    assert len({Problem(**SIZES, dtype=DType.FP16), Problem(**SIZES, dtype=DType.FP16)}) == 1

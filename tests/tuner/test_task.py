import pytest

from attnforge.codegen import AttentionSpec, DType, Pass
from attnforge.errors import UnsupportedInputError
from attnforge.operations import operations
from attnforge.problem import Problem
from attnforge.shipping import shipped_specs
from attnforge.tuner.task import tasks


def spec_of(pass_: Pass = Pass.FORWARD, head_dim: int = 128, head_dim_v: int = 128, causal: bool = False):
    return AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim_v, causal=causal)


def test_the_standard_set() -> None:
    todo = tasks(shipped_specs(), (16384, 1024, 4096, 1024), DType.BF16)
    assert len(todo) == 36
    assert todo[0].spec.head_dim == 128, "what is common comes first"
    for task in todo:
        assert [problem.seqlen_q for problem in task.problems] == [1024, 4096, 16384]
        for problem in task.problems:
            assert problem.batch * problem.seqlen_q == 16384
            assert problem.heads == problem.kv_heads == 2048 // task.spec.head_dim


def test_a_seqlen_beyond_the_tokens_is_one_sequence() -> None:
    (task,) = tasks([spec_of()], [65536], DType.FP16)
    assert (task.problems[0].batch, task.problems[0].dtype) == (1, DType.FP16)


def test_a_seqlen_of_nothing_is_refused() -> None:
    with pytest.raises(UnsupportedInputError):
        tasks([spec_of()], [0], DType.BF16)


def problem(seqlen_q: int, seqlen_k: int) -> Problem:
    return Problem(batch=2, heads=3, kv_heads=3, seqlen_q=seqlen_q, seqlen_k=seqlen_k, dtype=DType.BF16)


@pytest.mark.parametrize(
    ("spec", "sizes", "expected"),
    [
        (spec_of(), (1000, 1000), 4.0 * 6 * 1000**2 * 128),
        (spec_of(causal=True), (1000, 1000), 2.0 * 6 * 1000**2 * 128),
        (spec_of(Pass.BACKWARD), (1000, 1000), 10.0 * 6 * 1000**2 * 128),
        (spec_of(head_dim=192), (10, 30), 2.0 * 6 * 300 * (192 + 128)),
        (spec_of(causal=True), (10, 30), 4.0 * 6 * (10 * 20 + 50) * 128),
        (spec_of(causal=True), (30, 10), 4.0 * 6 * 50 * 128),
    ],
)
def test_operations(spec: AttentionSpec, sizes: tuple[int, int], expected: float) -> None:
    assert operations(spec, problem(*sizes)) == expected

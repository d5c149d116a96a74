import pytest
from hypothesis import given

from attnforge.codegen.head_dims import (
    HeadDimSplit,
    best_split,
    chunk_widths,
    is_split_a_choice,
    next_power_of_two,
    split_head_dim,
)
from tests.codegen.strategies import head_dims, splits


@pytest.mark.parametrize(
    ("head_dim", "widths"),
    [
        (16, (16,)),
        (24, (32,)),
        (32, (32,)),
        (40, (32, 16)),
        (72, (64, 16)),
        (80, (64, 16)),
        (88, (64, 32)),
        (96, (64, 32)),
        (112, (64, 32, 16)),
        (120, (128,)),
        (160, (128, 32)),
        (192, (128, 64)),
        (224, (128, 64, 32)),
        (256, (256,)),
    ],
)
def test_chunk_widths(head_dim: int, widths: tuple[int, ...]) -> None:
    assert chunk_widths(head_dim) == widths


@given(head_dims)
def test_chunks_fall_in_powers_of_two_and_are_never_wider_than_padding(head_dim: int) -> None:
    widths = chunk_widths(head_dim)
    assert all(width & (width - 1) == 0 and width >= 16 for width in widths)
    assert list(widths) == sorted(set(widths), reverse=True)
    assert head_dim <= sum(widths) <= next_power_of_two(head_dim)
    assert sum(widths) - head_dim < 16 or len(widths) == 1


@given(head_dims, splits)
def test_every_column_is_in_one_chunk_and_what_sticks_out_is_masked(head_dim: int, split: HeadDimSplit) -> None:
    chunks = split_head_dim(head_dim, split)
    columns = [column for chunk in chunks for column in range(chunk.offset, chunk.offset + chunk.width)]
    assert columns == list(range(len(columns)))
    assert len(columns) >= head_dim
    for chunk in chunks:
        assert chunk.masked is (chunk.offset + chunk.width > head_dim)
        assert chunk.offset < head_dim, "a chunk that holds nothing"


@given(head_dims)
def test_padding_is_one_chunk(head_dim: int) -> None:
    (chunk,) = split_head_dim(head_dim, HeadDimSplit.PADDED)
    assert chunk.suffix == ""
    assert chunk.width == next_power_of_two(head_dim)


@given(head_dims)
def test_the_split_is_a_choice_where_it_makes_a_difference(head_dim: int) -> None:
    differs = split_head_dim(head_dim, HeadDimSplit.CHUNKS) != split_head_dim(head_dim, HeadDimSplit.PADDED)
    assert is_split_a_choice(head_dim) is differs


def test_three_chunks_are_no_default() -> None:
    assert best_split(80, 128) is HeadDimSplit.CHUNKS
    assert best_split(80, 112) is HeadDimSplit.PADDED

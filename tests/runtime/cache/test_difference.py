import pytest

from attnforge.cache.difference import difference
from attnforge.cache.schema import Toolchain
from tests.runtime.cache.entries import ARCH, GPU, LATE, a_cache, a_config, measured, predicted, unfit

NEWER_TRITON = Toolchain(triton="3.9.0", torch="2.13.0", templates="0123456789abcdef")


def test_equal_caches_do_not_differ():
    found = difference(a_cache(measured(64), measured(128)), a_cache(measured(128), measured(64)))
    assert found.is_empty
    assert found.same == 2


def test_dates_and_trials_may_differ():
    assert difference(a_cache(measured()), a_cache(measured(created=LATE, trials=7))).is_empty


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        (measured(median_ms=1.0), {"median_ms": (1.25, 1.0)}),
        (measured(gain=1.5), {"gain": (1.2, 1.5)}),
        (predicted(), {"source": ("measured", "predicted"), "median_ms": (1.25, None)}),
        (measured(toolchain=NEWER_TRITON), {"triton": ("3.6.0", "3.9.0")}),
    ],
)
def test_what_differs_is_named_with_both_values(other, fields):
    (each,) = difference(a_cache(measured()), a_cache(other)).different
    assert each.fields == fields


def test_configs_differ_field_by_field():
    (each,) = difference(a_cache(measured()), a_cache(measured(config=a_config(64)))).different
    one, other = each.fields["config"]
    assert {name for name in one if one[name] != other[name]} == {"block_m"}


def test_entries_of_one_side_alone():
    found = difference(a_cache(measured(64), measured(80)), a_cache(measured(80), measured(128), measured(96)))
    assert found.only_in_a == (measured(64),)
    assert found.only_in_b == (measured(128), measured(96))
    assert not found.different
    assert not found.is_empty


def test_entries_are_paired_by_toolchain_first():
    both = (measured(), measured(toolchain=NEWER_TRITON, median_ms=1.0))
    assert difference(a_cache(*both), a_cache(*reversed(both))).is_empty
    found = difference(a_cache(*both), a_cache(measured()))
    assert found.only_in_a == both[1:]
    assert found.same == 1


def test_other_targets_differ():
    assert not difference(a_cache(measured(), target=ARCH), a_cache(measured(), target=GPU)).is_empty


def test_what_only_other_templates_can_use_differs_too():
    found = difference(a_cache(unfit=(unfit(64), unfit(96))), a_cache(unfit=(unfit(96, median_ms=1.0), unfit(128))))
    assert [entry.spec.head_dim for entry in found.only_in_a] == [64]
    assert [entry.spec.head_dim for entry in found.only_in_b] == [128]
    assert [each.fields for each in found.different] == [{"median_ms": (1.25, 1.0)}]

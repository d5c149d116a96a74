import dataclasses
import itertools

import pytest

from attnforge.codegen import SUPPORTED_HEAD_DIMS, AttentionSpec, DType, Pass, SpecError

VALID = {"pass_": Pass.FORWARD, "head_dim": 64, "head_dim_v": 64, "causal": True}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("head_dim", value) for value in (0, 8, 15, 17, 20, 250, 264, -64, 64.0, "64", True, None)),
        *(("head_dim_v", value) for value in (8, 260, "64")),
        *(("causal", value) for value in (1, 0, "true", None)),
        *(("pass_", value) for value in ("decode", "forward", None)),
    ],
)
def test_an_unsupported_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SpecError) as refusal:
        AttentionSpec(**{**VALID, field: value})
    assert refusal.value.field == field.rstrip("_")
    assert repr(value) in str(refusal.value)
    assert "supported:" in str(refusal.value)


@pytest.mark.parametrize(
    "attack", ["64\nimport os", "64; import os", "'; import os #", "{{ 7 * 7 }}", "__import__('os').system('true')"]
)
@pytest.mark.parametrize("field", VALID)
def test_code_is_no_value_of_any_field(field: str, attack: str) -> None:
    with pytest.raises(SpecError):
        AttentionSpec(**{**VALID, field: attack})


def test_a_spec_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AttentionSpec(**VALID).head_dim = 128  # type: ignore[misc]


def test_names_are_unique_and_safe_in_a_path() -> None:
    fields = itertools.product(Pass, SUPPORTED_HEAD_DIMS, SUPPORTED_HEAD_DIMS, (False, True))
    names = [AttentionSpec(pass_=p, head_dim=d, head_dim_v=v, causal=c).name for p, d, v, c in fields]
    assert len(set(names)) == len(names) == 2 * 31 * 31 * 2
    assert all(name.isidentifier() for name in names)
    assert AttentionSpec(**VALID).name == "forward_d64_causal"
    assert AttentionSpec(**{**VALID, "head_dim": 192, "head_dim_v": 128}).name == "forward_d192x128_causal"


def test_sizes_of_elements() -> None:
    assert {dtype: dtype.bytes for dtype in DType} == {DType.FP16: 2, DType.BF16: 2, DType.FP32: 4}

"""Options that choose specs, as several commands have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from attnforge.codegen import AttentionSpec, DType, Pass
from attnforge.errors import AttnforgeError
from attnforge.shipping import HEAD_DIMS


class SelectionError(AttnforgeError):
    """Options that do not go together."""


_DTYPES = {"fp16": DType.FP16, "bf16": DType.BF16, "fp32": DType.FP32} | {str(dtype): dtype for dtype in DType}


def _dtype(text: str) -> DType:
    if text not in _DTYPES:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(_DTYPES)}")
    return _DTYPES[text]


DTypeOption = Annotated[
    DType, typer.Option("--dtype", parser=_dtype, metavar="fp16|bf16|fp32", help="Of q, k, v and out.")
]
HeadDimOption = Annotated[
    list[int] | None,
    typer.Option("--head-dim", help="Head dim of q and k: a multiple of 8 from 16 to 256. Repeat it for several."),
]
HeadDimVOption = Annotated[
    int | None, typer.Option("--head-dim-v", help="Head dim of v and out, where it differs from --head-dim.")
]
CausalOption = Annotated[
    bool | None, typer.Option("--causal/--no-causal", help="With or without a causal mask; both when left out.")
]
PassOption = Annotated[Pass | None, typer.Option("--pass", help="One of the two; both when left out.")]


def selected_specs(
    head_dims: Sequence[int] | None, head_dim_v: int | None, causal: bool | None, pass_: Pass | None
) -> tuple[AttentionSpec, ...]:
    """The specs that the options ask for, of all shipped head dims when none is given.

    Raises SpecError, or SelectionError when the options do not go together.
    """
    if head_dim_v is not None and not head_dims:
        raise SelectionError("--head-dim-v needs --head-dim")
    dims = [(head_dim, head_dim_v or head_dim) for head_dim in dict.fromkeys(head_dims or HEAD_DIMS)]
    return tuple(
        AttentionSpec(pass_=one_pass, head_dim=qk, head_dim_v=v, causal=one_causal)
        for one_pass in ([pass_] if pass_ else list(Pass))
        for qk, v in dims
        for one_causal in ([False, True] if causal is None else [causal])
    )

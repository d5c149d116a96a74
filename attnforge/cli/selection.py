"""Options that choose specs, as several commands have them."""

from __future__ import annotations

from typing import Annotated

import typer

from attnforge.codegen import AttentionSpec, Pass
from attnforge.errors import AttnforgeError
from attnforge.shipping import HEAD_DIMS


class SelectionError(AttnforgeError):
    """Options that do not go together."""


HeadDimOption = Annotated[
    int | None, typer.Option("--head-dim", help="Head dim of q and k: a multiple of 8 from 16 to 256.")
]
HeadDimVOption = Annotated[
    int | None, typer.Option("--head-dim-v", help="Head dim of v and out, where it differs from --head-dim.")
]
CausalOption = Annotated[
    bool | None, typer.Option("--causal/--no-causal", help="With or without a causal mask; both when left out.")
]
PassOption = Annotated[Pass | None, typer.Option("--pass", help="One of the two; both when left out.")]


def selected_specs(
    head_dim: int | None, head_dim_v: int | None, causal: bool | None, pass_: Pass | None
) -> tuple[AttentionSpec, ...]:
    """The specs that the options ask for, among the shipped ones when no head dim is given.

    Raises SpecError, or SelectionError when the options do not go together.
    """
    if head_dim is None and head_dim_v is not None:
        raise SelectionError("--head-dim-v needs --head-dim")
    dims = [(head_dim, head_dim_v or head_dim)] if head_dim else [(shipped, shipped) for shipped in HEAD_DIMS]
    return tuple(
        AttentionSpec(pass_=one_pass, head_dim=qk, head_dim_v=v, causal=one_causal)
        for one_pass in ([pass_] if pass_ else list(Pass))
        for qk, v in dims
        for one_causal in ([False, True] if causal is None else [causal])
    )

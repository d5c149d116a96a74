"""Arguments that hold nothing: what a kernel is compiled for when there is no GPU to hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from attnforge.codegen import AttentionSpec, Pass
from attnforge.problem import Problem

Launch = tuple[Any, tuple[int, int, int], Sequence[torch.Tensor], Sequence[int | float | bool], Mapping[str, Any]]
"""One entry of a rendered module's plan: kernel, grid, tensors, scalars, options."""


def representative_plan(module: ModuleType, spec: AttentionSpec, problem: Problem) -> list[Launch]:
    """The launches of a rendered module for a problem with contiguous (B, H, S, D) tensors, on the meta device."""
    dtype = getattr(torch, problem.dtype)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    query_rows = (problem.batch, problem.heads, problem.seqlen_q)
    keys = (problem.batch, problem.kv_heads, problem.seqlen_k)
    q, k, v = empty(*query_rows, spec.head_dim), empty(*keys, spec.head_dim), empty(*keys, spec.head_dim_v)
    out, lse = empty(*query_rows, spec.head_dim_v), empty(*query_rows, dtype=torch.float32)
    softmax_scale = spec.head_dim**-0.5
    if spec.pass_ is Pass.FORWARD:
        return list(module.plan(q, k, v, out, lse, softmax_scale))
    workspace = empty(*module.workspace_shape(q), dtype=torch.float32)
    dout, dq, dk, dv = (torch.empty_like(tensor) for tensor in (out, q, k, v))
    return list(module.plan(dout, q, k, v, out, lse, dq, dk, dv, workspace, softmax_scale))

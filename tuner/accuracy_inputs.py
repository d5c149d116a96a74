"""Inputs that make faulty kernels show, and guarded memory to run them in.

Random normal inputs alone hide most faults: a dropped block or a missed rescale changes an average over many keys by
little. So one launch holds a family of inputs per batch element, each made so that some fault cannot hide.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch

from attnforge.codegen import AttentionSpec, DType, Pass
from attnforge.reference import last_visible_key

NEEDLE_LOGIT = 14.0
"""A needle's score; e^14 outweighs 500 other keys with normal scores by far, and stays exact in fp32."""
LARGE_LOGIT = 80.0
"""exp(80) overflows fp16 at once, and fp32 once a scale or a sum of a few thousand is applied to it carelessly."""
GUARD = -77.0
"""What surrounds outputs: a finite value that no kernel computes by accident."""
GUARD_ELEMENTS = 1024
"""Elements before and after packed memory: several rows, and a multiple of every alignment."""


class Family(StrEnum):
    """Kinds of inputs."""

    NORMAL = "random normal"
    NEEDLE = "needle"
    LARGE_LOGITS = "large logits"
    EQUAL_KEYS = "equal keys"
    ONE_HOT_VALUES = "one-hot values"
    NAN_IN_FUTURE_KEYS = "NaN in future keys"

    @classmethod
    def of(cls, spec: AttentionSpec) -> tuple[Family, ...]:
        """The families that make sense for a spec: future keys exist under a causal mask only.

        Not in a backward: dQ of the rows that do see those keys is NaN, and with it dK of every key.
        """
        with_nan = spec.causal and spec.pass_ is Pass.FORWARD
        return tuple(family for family in cls if with_nan or family is not cls.NAN_IN_FUTURE_KEYS)


class Layout(StrEnum):
    """How tensors lie in memory; the last dim is always contiguous."""

    PACKED = "packed"
    """(batch, heads, seqlen, head_dim), contiguous."""
    BSHD = "bshd"
    """A transposed view of (batch, seqlen, heads, head_dim) with space around each row."""
    PADDED = "padded"
    """(batch, heads, seqlen, head_dim) with space around each row."""
    EXPANDED = "expanded"
    """Packed, but all kv heads are one (stride 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One launch to be judged. Its batch elements are its families."""

    spec: AttentionSpec
    dtype: DType
    seqlen_q: int
    seqlen_k: int
    families: tuple[Family, ...]
    heads: int = 2
    kv_heads: int = 1
    layout: Layout = Layout.PACKED
    scale_factor: float = 1.0
    """softmax_scale in units of head_dim ** -0.5."""

    @property
    def name(self) -> str:
        """Such as ``backward_d64_causal bfloat16 q300 k421 h2/1 packed``."""
        shape = f"q{self.seqlen_q} k{self.seqlen_k} h{self.heads}/{self.kv_heads}"
        return f"{self.spec.name} {self.dtype} {shape} {self.layout}"

    @property
    def softmax_scale(self) -> float:
        """The scale of the scores."""
        return self.scale_factor / math.sqrt(self.spec.head_dim)

    @property
    def last_checked_row(self) -> int:
        """The last query that future NaN must not reach."""
        return self.seqlen_q // 2


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a case starts from, of the shapes that attention() names."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to be written, in the midst of memory that must stay as it is."""

    tensor: torch.Tensor
    """NaN until it is written."""
    memory: torch.Tensor

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: Layout) -> Output:
        """An output that was not written yet."""
        memory, tensor = allocate(shape, dtype, device, layout, GUARD)
        return Output(tensor.fill_(float("nan")), memory)

    def overwritten(self) -> torch.Tensor:
        """How many elements around the tensor changed: a scalar on its device."""
        written = self.tensor.clone()
        self.tensor.fill_(GUARD)
        count = (self.memory != GUARD).sum()
        self.tensor.copy_(written)
        return count


def allocate(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: Layout, around: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory filled with ``around``, and the view of ``shape`` (batch, heads, seqlen, columns) in the midst of it."""
    batch, heads, seqlen, columns = shape
    if layout is Layout.BSHD:
        memory = torch.full((batch, seqlen + 2, heads, columns + 8), around, dtype=dtype, device=device)
        return memory, memory[:, 1:-1, :, :columns].transpose(1, 2)
    if layout is Layout.PADDED:
        memory = torch.full((batch, heads, seqlen + 2, columns + 8), around, dtype=dtype, device=device)
        return memory, memory[:, :, 1:-1, :columns]
    elements = batch * heads * seqlen * columns
    memory = torch.full((elements + 2 * GUARD_ELEMENTS,), around, dtype=dtype, device=device)
    return memory, memory[GUARD_ELEMENTS : GUARD_ELEMENTS + elements].view(shape)


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """A case's inputs, the same on every device. NaN lies around them: who reads past an edge will show it."""
    draw = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    elements = [_FAMILIES[family](case, *_normal(case, draw)) for family in case.families]
    q, k, v = (torch.stack(tensors) for tensors in zip(*elements, strict=True))
    dout = torch.randn(*q.shape[:3], case.spec.head_dim_v, generator=draw)
    if case.layout is Layout.EXPANDED:
        k, v = k[:, :1], v[:, :1]

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        dtype = getattr(torch, case.dtype)
        view = allocate(tuple(tensor.shape), dtype, device, case.layout, float("nan"))[1]
        return view.copy_(tensor)

    key, value = (placed(x).expand(-1, case.kv_heads, -1, -1) for x in (k, v))
    return Inputs(placed(q), key, value, placed(dout))


Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _normal(case: Case, draw: torch.Generator) -> Triple:
    """One batch element's q, k, v: (heads, seqlen, head dim), fp32."""
    spec = case.spec
    q = torch.randn(case.heads, case.seqlen_q, spec.head_dim, generator=draw)
    k = torch.randn(case.kv_heads, case.seqlen_k, spec.head_dim, generator=draw)
    v = torch.randn(case.kv_heads, case.seqlen_k, spec.head_dim_v, generator=draw)
    return q, k, v


def _needle(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Triple:
    """Each query points at one key. Rows take turns: their last key, their first key, a middle one, and a key too late.

    The last shows a dropped last block or rescale, the others a dropped block elsewhere; the key just behind the mask
    must have no weight, and would have all of it if it leaked. Without a mask, the turn of "too late" is the last key.
    """
    rows = torch.arange(case.seqlen_q)
    last = torch.full_like(rows, case.seqlen_k - 1)
    if case.spec.causal:
        last = last_visible_key(case.seqlen_q, case.seqlen_k).clamp(min=0)
    turns = torch.stack([last, torch.zeros_like(rows), last * 2 // 3, (last + 1).clamp(max=case.seqlen_k - 1)])
    keys = k.repeat_interleave(case.heads // case.kv_heads, 0)[:, turns[rows % 4, rows]]
    return NEEDLE_LOGIT / case.softmax_scale * keys / keys.square().sum(-1, keepdim=True), k, v


def _large_logits(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Triple:
    """Scores of +80 and -80, by the signs of query and key along one direction, with noise of about one."""
    direction = torch.nn.functional.normalize(q[0, 0], dim=0) * (LARGE_LOGIT / case.softmax_scale) ** 0.5
    return q[..., :1].sign() * direction + 0.25 * q, k[..., :1].sign() * direction + 0.25 * k, v


def _equal_keys(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Triple:
    """Every visible key has the same weight, so that the number of keys shows in the LSE."""
    return q, k[:, :1].expand_as(k), v


def _one_hot_values(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Triple:
    """Key j adds its weight to column j mod head_dim_v alone: columns or keys that change places show."""
    columns = torch.arange(case.seqlen_k) % case.spec.head_dim_v
    return q, k, torch.nn.functional.one_hot(columns, case.spec.head_dim_v).float().expand_as(v)


def _nan_in_future_keys(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Triple:
    """Keys behind the last checked row's are NaN: 0 * NaN is NaN, so they must be masked, not multiplied away."""
    future = max(0, case.last_checked_row + case.seqlen_k - case.seqlen_q + 1)
    k[:, future:] = float("nan")
    return q, k, v


_FAMILIES: dict[Family, Callable[[Case, torch.Tensor, torch.Tensor, torch.Tensor], Triple]] = {
    Family.NORMAL: lambda case, q, k, v: (q, k, v),
    Family.NEEDLE: _needle,
    Family.LARGE_LOGITS: _large_logits,
    Family.EQUAL_KEYS: _equal_keys,
    Family.ONE_HOT_VALUES: _one_hot_values,
    Family.NAN_IN_FUTURE_KEYS: _nan_in_future_keys,
}

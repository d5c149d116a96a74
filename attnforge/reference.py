"""Attention in eager PyTorch, written plainly: what every kernel is judged against.

The forward and its backward are explicit math, in float64 by default. Evaluated in the inputs' own dtype instead
(``eager_lp``), the same code gives the error that plain low-precision PyTorch makes: FlashAttention's yardstick.

Formulas, a row of scores s and its keys: p = softmax(s), out = p v; then dv = p^T dout, dp = dout v^T,
ds = p (dp - sum(p dp)), dq = scale ds k, dk = scale ds^T q (Dao et al. 2022, FlashAttention, appendix B.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

SCORES_AT_ONCE = 1 << 26
"""Scores that are held at once (half a gibibyte in float64): heads, then query rows are walked in such pieces."""


class Attended(NamedTuple):
    """What the forward gives."""

    out: torch.Tensor
    """(batch, heads, seqlen_q, head_dim_v), in the dtype of evaluation; 0 where a row sees no key."""
    lse: torch.Tensor
    """(batch, heads, seqlen_q), natural log of the sum of exp(score); -inf where a row sees no key."""


class Gradients(NamedTuple):
    """What the backward gives, each of its input's shape, in the dtype of evaluation."""

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor


def last_visible_key(seqlen_q: int, seqlen_k: int, device: torch.device | str | None = None) -> torch.Tensor:
    """(seqlen_q,) the last key each query sees under a causal mask: bottom-right, so the last query sees every key.

    Negative for a query that sees none.
    """
    return torch.arange(seqlen_q, device=device) + (seqlen_k - seqlen_q)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    softmax_scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Attended:
    """softmax(softmax_scale q k^T) v, evaluated in ``dtype``, and the log-sum-exp of each row.

    q is (batch, heads, seqlen_q, head_dim), k (batch, kv_heads, seqlen_k, head_dim), v (batch, kv_heads, seqlen_k,
    head_dim_v), any strides and dtype; heads is a multiple of kv_heads. softmax_scale is head_dim ** -0.5 by default.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    out = q.new_empty(*q.shape[:3], v.shape[-1], dtype=dtype)
    lse = q.new_empty(q.shape[:3], dtype=_wide(dtype))
    for piece in _pieces(q, k):
        scores = _scores(piece, q, k, causal, scale, dtype)
        log_sum = torch.logsumexp(scores, -1)
        p = _probabilities(scores, log_sum).to(dtype)
        out[piece.queries] = (p @ v[piece.keys].to(dtype)[:, None]).flatten(0, 1)
        lse[piece.queries] = log_sum.flatten(0, 1)
    return Attended(out, lse)


def attention_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    softmax_scale: float | None = None,
    out: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Gradients:
    """The gradients of ``(attention(q, k, v).out * dout).sum()``, evaluated in ``dtype``.

    Shapes as for attention(); dout has the shape of out. dk and dv are summed over the query heads of their group.
    A row that sees no key gives gradients of exactly 0. With ``out``, the forward's result as it was stored,
    sum(p dp) is taken as its equal, sum(out dout): so do flash kernels, and the rounding of out reaches dq and dk.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    wide = _wide(dtype)
    dq, dk, dv = torch.empty_like(q, dtype=dtype), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    for piece in _pieces(q, k):
        scores = _scores(piece, q, k, causal, scale, dtype)
        p = _probabilities(scores, torch.logsumexp(scores, -1)).to(dtype)
        queries, keys, values, upstream = (
            x.to(dtype) for x in (piece.group(q), k[piece.keys][:, None], v[piece.keys][:, None], piece.group(dout))
        )
        dp = upstream @ values.mT
        if out is None:
            delta = (p.to(wide) * dp.to(wide)).sum(-1, keepdim=True)
        else:
            delta = (piece.group(out).to(wide) * upstream.to(wide)).sum(-1, keepdim=True)
        ds = (p.to(wide) * (dp.to(wide) - delta) * scale).to(dtype)
        dq[piece.queries] = (ds @ keys).flatten(0, 1)
        dk[piece.keys] += (ds.mT @ queries).to(wide).sum(1)
        dv[piece.keys] += (p.mT @ upstream).to(wide).sum(1)
    return Gradients(dq, dk.to(dtype), dv.to(dtype))


def eager_lp(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, softmax_scale: float | None = None
) -> Attended:
    """attention() evaluated in the inputs' own dtype, as plain PyTorch would: scores and probabilities are rounded."""
    return attention(q, k, v, causal=causal, softmax_scale=softmax_scale, dtype=q.dtype)


def eager_lp_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    softmax_scale: float | None = None,
) -> Gradients:
    """attention_backward() evaluated in the inputs' own dtype."""
    return attention_backward(dout, q, k, v, causal=causal, softmax_scale=softmax_scale, dtype=q.dtype)


def rounding_bounds(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    softmax_scale: float | None = None,
) -> Gradients:
    """How far gradients may be off, in units of one rounding of fp32, however little is left of them: float64.

    To first order: a score errs by the sum of its terms' magnitudes; its probability by that, by the LSE's error and by
    eight roundings of exp2 and of sums, all relative to itself; dp and sum(p dp) like a score. Where these two cancel,
    as for a row that sees one key only, dq and dk are all rounding.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    double = torch.float64
    dq, dk, dv = torch.empty_like(q, dtype=double), torch.zeros_like(k, dtype=double), torch.zeros_like(v, dtype=double)
    for piece in _pieces(q, k):
        scores = _scores(piece, q, k, causal, scale, double)
        p = _probabilities(scores, torch.logsumexp(scores, -1))
        queries, upstream = (piece.group(x).to(double).abs() for x in (q, dout))
        keys, values = (x[piece.keys][:, None].to(double).abs() for x in (k, v))
        score_errors = queries @ keys.mT * scale
        dp = upstream @ values.mT
        delta = (p * dp).sum(-1, keepdim=True)
        p_errors = p * (8 + score_errors + (p * score_errors).sum(-1, keepdim=True))
        ds = p_errors * (dp + delta) * scale
        dq[piece.queries] = (ds @ keys).flatten(0, 1)
        dk[piece.keys] += (ds.mT @ queries).sum(1)
        dv[piece.keys] += (p_errors.mT @ upstream).sum(1)
    return Gradients(dq, dk, dv)


def operand_roundings(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool,
    softmax_scale: float | None = None,
) -> Gradients:
    """How far gradients stray because p and ds are rounded to the inputs' dtype before they are multiplied: float64.

    Each term of a sum such as dq = scale sum_j ds_j k_j strays by at most half a spacing of ds_j times k_j, at random
    and by itself, so the sum strays like the root of the terms' squares, not like their sum (Higham and Mary 2019, A
    New Approach to Probabilistic Rounding Error Analysis). That does not shrink where the terms cancel. With terms of
    random signs, a gradient has the size of this over the unit roundoff.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    double = torch.float64
    dq, dk, dv = torch.empty_like(q, dtype=double), torch.zeros_like(k, dtype=double), torch.zeros_like(v, dtype=double)
    for piece in _pieces(q, k):
        scores = _scores(piece, q, k, causal, scale, double)
        p = _probabilities(scores, torch.logsumexp(scores, -1))
        queries, upstream = (piece.group(x).to(double) for x in (q, dout))
        keys, values = (x[piece.keys][:, None].to(double) for x in (k, v))
        dp = upstream @ values.mT
        ds = p * (dp - (p * dp).sum(-1, keepdim=True))
        p_squared, ds_squared = (_half_spacing(x, q.dtype).square() for x in (p, ds))
        dq[piece.queries] = (ds_squared @ keys.square()).flatten(0, 1)
        dk[piece.keys] += (ds_squared.mT @ queries.square()).sum(1)
        dv[piece.keys] += (p_squared.mT @ upstream.square()).sum(1)
    return Gradients(dq.sqrt() * scale, dk.sqrt() * scale, dv.sqrt())


def _half_spacing(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The most that rounding to ``dtype`` moves each value, subnormal ones too, and never more than to 0."""
    kind = torch.finfo(dtype)
    return torch.minimum(values.abs().clamp(min=kind.smallest_normal) * (kind.eps / 2), values.abs())


class _Piece(NamedTuple):
    """Some kv heads of one batch element, with the query heads that share them, and some query rows."""

    queries: tuple[int, slice, slice]
    """Index of its query heads and rows in q, out and dout."""
    keys: tuple[int, slice]
    """Index of its kv heads in k and v."""
    kv_heads: int

    def group(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its part of q, out or dout as (kv_heads, query heads per kv head, rows, columns)."""
        part = tensor[self.queries]
        return part.view(self.kv_heads, -1, *part.shape[1:])


def _pieces(q: torch.Tensor, k: torch.Tensor) -> Iterator[_Piece]:
    batch, heads, seqlen_q, _ = q.shape
    kv_heads, seqlen_k = k.shape[1:3]
    group = heads // kv_heads
    rows = max(1, min(seqlen_q, SCORES_AT_ONCE // max(1, group * seqlen_k)))
    heads_at_once = max(1, SCORES_AT_ONCE // max(1, group * seqlen_k * rows))
    for b in range(batch):
        for first in range(0, kv_heads, heads_at_once):
            last = min(first + heads_at_once, kv_heads)
            for row in range(0, seqlen_q, rows):
                queries = (b, slice(first * group, last * group), slice(row, min(row + rows, seqlen_q)))
                yield _Piece(queries, (b, slice(first, last)), last - first)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What softmax and its sums are evaluated in, as PyTorch does for low-precision inputs."""
    return torch.promote_types(dtype, torch.float32)


def _scores(
    piece: _Piece, q: torch.Tensor, k: torch.Tensor, causal: bool, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """Scaled and masked scores of a piece: (kv_heads, query heads per kv head, rows, seqlen_k)."""
    scores = (piece.group(q).to(dtype) @ k[piece.keys].to(dtype).mT[:, None] * scale).to(_wide(dtype))
    if causal:
        last_key = last_visible_key(q.shape[2], k.shape[2], q.device)[piece.queries[2]]
        scores.masked_fill_(torch.arange(k.shape[2], device=q.device) > last_key[:, None], float("-inf"))
    return scores


def _probabilities(scores: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
    """exp(score - lse), and 0 for a row that sees no key."""
    return torch.exp(scores - torch.where(log_sum.isneginf(), 0.0, log_sum)[..., None])

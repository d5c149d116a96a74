"""The useful work of a problem, from which TFLOP/s follow."""

from __future__ import annotations

from attnforge.codegen import AttentionSpec, Pass
from attnforge.problem import Problem


def visible_pairs(problem: Problem, causal: bool) -> float:
    """Pairs of a query and a key that it sees, per head; the causal diagonal counts half, as is the custom."""
    queries, keys = problem.seqlen_q, problem.seqlen_k
    if not causal:
        return float(queries * keys)
    seeing = min(queries, keys)  # bottom-right: the first queries see nothing when there are fewer keys
    return seeing * (keys - seeing) + seeing * seeing / 2


def operations(spec: AttentionSpec, problem: Problem) -> float:
    """Floating-point operations of one call: two matrix products forward, five backward.

    FlashAttention's convention (Dao 2023, arXiv 2307.08691, section 4.1): 4·B·H·S²·D forward, half of it if causal, 2.5
    times that backward; what the backward computes again counts once.
    """
    per_pair = 2.0 * (spec.head_dim + spec.head_dim_v)
    forward = problem.batch * problem.heads * visible_pairs(problem, spec.causal) * per_pair
    return forward if spec.pass_ is Pass.FORWARD else 2.5 * forward

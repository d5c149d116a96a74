"""Which problems a config is compiled for: kernels are compiled apart for sizes that blocks divide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import gcd

from attnforge.problem import Problem
from attnforge.tuner.accuracy_inputs import Case

LARGEST_BLOCK = 256
"""Kernels are compiled apart for seqlens that blocks divide; no block is wider."""


def sizes_of(case: Case) -> Problem:
    """The problem that a case of the accuracy gate is."""
    return Problem(
        batch=len(case.families),
        heads=case.heads,
        kv_heads=case.kv_heads,
        seqlen_q=case.seqlen_q,
        seqlen_k=case.seqlen_k,
        dtype=case.dtype,
    )


def unlike(problems: Iterable[Problem]) -> Iterator[Problem]:
    """One of each kind of problem that compiles to kernels of its own."""
    seen = set()
    for problem in problems:
        group = problem.heads // problem.kv_heads
        kind = (gcd(problem.seqlen_q, LARGEST_BLOCK), gcd(problem.seqlen_k, LARGEST_BLOCK), group)
        if kind not in seen:
            seen.add(kind)
            yield problem

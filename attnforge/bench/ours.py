"""Our side of a run: what the dispatcher decides for each cell, compiled ahead; what a small call costs the host."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch.nn.functional import scaled_dot_product_attention

from attnforge.bench.case import Case
from attnforge.bench.results import DecisionRecord, HostCost
from attnforge.bench.timing import Call, microseconds_per_call
from attnforge.codegen import AttentionSpec, DType, Pass
from attnforge.compilation import CompilePool
from attnforge.dispatch.decision import Decision, decide
from attnforge.dispatch.dispatcher import DISPATCHER
from attnforge.dispatch.surroundings import Surroundings
from attnforge.kernels import load
from attnforge.ops import attention
from attnforge.problem import Problem
from attnforge.target import Target

TINY = Case(batch=1, heads=1, kv_heads=1, seqlen=16, head_dim=64, causal=False, dtype=DType.BF16)
"""The call whose host cost is measured: the GPU is done with it before the host is."""


def spec_of(case: Case, pass_: Pass) -> AttentionSpec:
    """The spec of one pass of a case. Raises SpecError for a head dim that no template can render."""
    return AttentionSpec(pass_=pass_, head_dim=case.head_dim, head_dim_v=case.head_dim, causal=case.causal)


def problem_of(case: Case) -> Problem:
    """The sizes of a case's call."""
    return Problem(
        batch=case.batch,
        heads=case.heads,
        kv_heads=case.kv_heads,
        seqlen_q=case.seqlen,
        seqlen_k=case.seqlen,
        dtype=case.dtype,
    )


class Decisions:
    """What the dispatcher picks on one target."""

    def __init__(self, target: Target, surroundings: Surroundings | None = None) -> None:
        """``surroundings`` are those of attention() itself unless a test gives others."""
        self.target = target
        self._surroundings = surroundings or DISPATCHER.surroundings

    def of(self, case: Case, pass_: Pass) -> Decision:
        """The decision for one cell, now: variants that failed to launch before are passed over. Raises SpecError."""
        caches = self._surroundings.caches_for(self.target)
        failed = self._surroundings.failed.get((self.target, case.dtype), set())
        return decide(spec_of(case, pass_), problem_of(case), self.target, caches, failed)

    def record(self, case: Case, pass_: Pass) -> DecisionRecord:
        """The same as plain data, for the results."""
        decision = self.of(case, pass_)
        cache = None if decision.cache_path is None else str(decision.cache_path)
        return DecisionRecord(
            kind=str(decision.kind), reason=decision.reason, variant=decision.variant.name, cache=cache
        )  # fmt: skip

    def compile_ahead(self, cells: Iterable[tuple[Case, Pass]]) -> None:
        """Fill triton's cache, all cells in parallel: one after the other, the default grid would take minutes.

        A variant that does not compile is no error here: the dispatcher meets it again, and the cell says why.
        """
        jobs = [(self.of(case, pass_).variant, problem_of(case)) for case, pass_ in cells]
        with CompilePool(min(len(jobs), len(os.sched_getaffinity(0)))) as pool:
            for future in [pool.submit(variant, problem, self.target) for variant, problem in jobs]:
                future.result()


def _held_launch(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decisions: Decisions) -> Call:
    """A function that launches the forward kernel of a call, compiled and with its outputs allocated before."""
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    module = load(decisions.of(case, Pass.FORWARD).variant)
    ((kernel, grid, tensors, scalars, options),) = module.plan(q, k, v, out, lse, q.shape[3] ** -0.5)
    held = kernel[grid](*tensors, *scalars, **options)[grid]
    arguments = (*tensors, *scalars)
    stream = torch.cuda.current_stream(q.device).cuda_stream
    return lambda: held(*arguments, stream=stream)


def measure_host_cost(decisions: Decisions, device: torch.device) -> HostCost:
    """Host time of a tiny bf16 forward through attention(), as a raw held launch, and through SDPA."""
    shape = (TINY.batch, TINY.heads, TINY.seqlen, TINY.head_dim)
    q, k, v = (torch.randn(shape, dtype=getattr(torch, TINY.dtype), device=device) for _ in range(3))
    q_leaf, k_leaf, v_leaf = (tensor.clone().requires_grad_() for tensor in (q, k, v))
    calls: dict[str, Call] = {
        "dispatched_us": lambda: attention(q, k, v),
        "raw_launch_us": _held_launch(TINY, q, k, v, decisions),
        "sdpa_us": lambda: scaled_dot_product_attention(q, k, v),
        "dispatched_grad_us": lambda: attention(q_leaf, k_leaf, v_leaf),
        "sdpa_grad_us": lambda: scaled_dot_product_attention(q_leaf, k_leaf, v_leaf),
    }
    for call in calls.values():
        call()

    def wait() -> None:
        torch.cuda.synchronize(device)

    return HostCost(shape=shape, **{name: microseconds_per_call(call, wait) for name, call in calls.items()})

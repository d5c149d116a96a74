"""Runs the cases: every implementation prepared, checked against another, timed against all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter

import torch
from torch import Tensor

from attnforge.bench.case import Case
from attnforge.bench.implementations import Implementation
from attnforge.bench.results import Cell, DecisionRecord, Failure, Measurement, Outcome
from attnforge.bench.timing import Call, CallFailedError, Timer
from attnforge.codegen import DType, Pass
from attnforge.errors import AttnforgeError

LARGEST_DISAGREEMENT = {DType.FP16: 5e-3, DType.BF16: 2e-2, DType.FP32: 5e-3}
"""Relative L2 between two implementations' outputs or gradients; twice what numerics.md allows one of them, and room
for gradients. A bench compares speed: this catches a kernel that computes something else, not its last bits."""

Decide = Callable[[Case, Pass], DecisionRecord | None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One implementation, warm for one case."""

    calls: Mapping[Pass, Call]
    setup_s: Mapping[Pass, float]
    results: Mapping[Pass, tuple[Tensor, ...]]
    """What it computed, heads first: out; dQ, dK and dV."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Random normal tensors of a case, heads first."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor

    @staticmethod
    def of(case: Case, device: torch.device) -> Inputs:
        """The same values each time: q and dout (B, H, S, D), k and v (B, Hkv, S, D)."""
        generator = torch.Generator(device).manual_seed(0)

        def draw(heads: int) -> Tensor:
            shape = (case.batch, heads, case.seqlen, case.head_dim)
            return torch.randn(shape, generator=generator, device=device, dtype=getattr(torch, case.dtype))

        return Inputs(draw(case.heads), draw(case.kv_heads), draw(case.kv_heads), draw(case.heads))


def failure_of(error: BaseException) -> Failure:
    """An exception as a value: its kind, and its first line."""
    lines = str(error).strip().splitlines()
    first = lines[0][:300] if lines else ""
    if isinstance(error, torch.OutOfMemoryError):
        return Failure(kind="out of memory", reason=first)
    if isinstance(error, AttnforgeError) or "No available kernel" in first:
        return Failure(kind="unsupported", reason=first)
    return Failure(kind="error", reason=f"{type(error).__name__}: {first}")


def prepare(implementation: Implementation, case: Case, inputs: Inputs, passes: Sequence[Pass]) -> Prepared:
    """Build, compile and run an implementation once. Raises whatever it raises.

    With a backward to time, the forward is the training one (inputs that require gradients, LSE kept), so that nobody
    compiles twice; else no graph is recorded.
    """
    backward = Pass.BACKWARD in passes

    def own_layout(tensor: Tensor) -> Tensor:
        return tensor if implementation.heads_first else tensor.transpose(1, 2).contiguous()

    def heads_first(tensor: Tensor) -> Tensor:
        return tensor.detach() if implementation.heads_first else tensor.detach().transpose(1, 2)

    q, k, v = (own_layout(t).detach().requires_grad_(backward) for t in (inputs.q, inputs.k, inputs.v))
    dout = own_layout(inputs.dout)
    started = perf_counter()
    attend = implementation.build(case, inputs.q.device)
    out = attend(q, k, v)
    _wait(out.device)
    calls: dict[Pass, Call] = {Pass.FORWARD: lambda: attend(q, k, v)}
    setup_s = {Pass.FORWARD: perf_counter() - started}
    results: dict[Pass, tuple[Tensor, ...]] = {Pass.FORWARD: (heads_first(out),)}
    if backward:

        def gradients() -> tuple[Tensor, ...]:
            return torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)

        started = perf_counter()
        computed = gradients()
        _wait(out.device)
        calls[Pass.BACKWARD] = gradients
        setup_s[Pass.BACKWARD] = perf_counter() - started
        results[Pass.BACKWARD] = tuple(heads_first(gradient) for gradient in computed)
    return Prepared(calls, setup_s, results)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def disagreement(results: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest relative L2 distance of any tensor from its reference; NaN where a result is NaN."""
    distances: list[float] = [
        ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()
        for ours, theirs in zip(results, reference, strict=True)
    ]
    return max(distances, key=lambda distance: (distance != distance, distance))


def _prepare_all(
    case: Case, implementations: Sequence[Implementation], passes: Sequence[Pass], device: torch.device
) -> tuple[dict[str, Prepared], dict[str, Failure]]:
    """The implementations that run this case, and why the others do not."""
    prepared: dict[str, Prepared] = {}
    failures: dict[str, Failure] = {}
    try:
        inputs = Inputs.of(case, device)
    except Exception as error:  # no memory for them, or a GPU that an earlier case has brought down
        return {}, {each.name: failure_of(error) for each in implementations}
    for implementation in implementations:
        try:
            prepared[implementation.name] = prepare(implementation, case, inputs, passes)
        except Exception as error:
            failures[implementation.name] = failure_of(error)
    return prepared, failures


def _disagreements(
    pass_: Pass, case: Case, prepared: Mapping[str, Prepared], judges: Sequence[str]
) -> dict[str, Failure]:
    """Who computes something else than the first peer that runs."""
    judge = next((name for name in judges if name in prepared), None)
    if judge is None:
        return {}
    found = {}
    for name, candidate in prepared.items():
        try:
            distance = disagreement(candidate.results[pass_], prepared[judge].results[pass_])
        except Exception as error:
            found[name] = failure_of(error)
            continue
        if not distance <= LARGEST_DISAGREEMENT[case.dtype]:
            reason = f"differs from {judge} by {distance:.2g} (relative L2)"
            found[name] = Failure(kind="wrong result", reason=reason)
    return found


def _time(timer: Timer, calls: Mapping[str, Call]) -> tuple[dict[str, list[float]], dict[str, Failure]]:
    """Times of the calls that can be timed, and why the others cannot."""
    calls = dict(calls)
    failures: dict[str, Failure] = {}
    while calls:
        try:
            return timer.measure(calls), failures
        except CallFailedError as error:
            failures[error.name] = failure_of(error.__cause__ or error)
            del calls[error.name]
        except Exception as error:  # the GPU itself gave up: no call of this case can be trusted any more
            return {}, failures | dict.fromkeys(calls, failure_of(error))
    return {}, failures


def _measurement(case: Case, pass_: Pass, times: list[float], setup_s: float) -> Measurement:
    low, middle, high = quantiles(times, n=4, method="inclusive")
    tflops = case.operations(pass_) / middle / 1e9
    return Measurement(
        median_ms=middle, low_ms=low, high_ms=high, rounds=len(times), tflops=tflops, setup_s=setup_s
    )  # fmt: skip


def run_case(
    case: Case,
    passes: Sequence[Pass],
    implementations: Sequence[Implementation],
    timer: Timer,
    decide: Decide,
    device: torch.device,
) -> Iterator[Cell]:
    """One cell per pass. What an implementation cannot do is a Failure in the cell, never an exception."""
    prepared, unprepared = _prepare_all(case, implementations, passes, device)
    judges = [implementation.name for implementation in implementations[1:]]
    for pass_ in passes:
        failures = unprepared | _disagreements(pass_, case, prepared, judges)
        calls = {name: each.calls[pass_] for name, each in prepared.items() if name not in failures}
        times, untimed = _time(timer, calls)
        outcomes: dict[str, Outcome] = dict(failures | untimed)
        for name, milliseconds in times.items():
            outcomes[name] = _measurement(case, pass_, milliseconds, prepared[name].setup_s[pass_])
        yield Cell(
            pass_=pass_,
            batch=case.batch,
            heads=case.heads,
            kv_heads=case.kv_heads,
            seqlen=case.seqlen,
            head_dim=case.head_dim,
            causal=case.causal,
            dtype=case.dtype,
            decision=decide(case, pass_),
            outcomes={each.name: outcomes[each.name] for each in implementations},
        )

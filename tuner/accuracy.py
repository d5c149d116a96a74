"""The accuracy gate: no config's time counts before its results are right.

``check(launch, prepare(case, device))`` runs one launch in guarded memory and judges it by ``accuracy_rules`` against
``attnforge.reference``; ``gate(module, spec, dtype, device)`` does so on the few cases that tell right kernels from
wrong ones. A launch is what a rendered module calls ``launch``, or anything with its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from attnforge import reference
from attnforge.codegen import AttentionSpec, DType, Pass
from attnforge.tuner.accuracy_inputs import Case, Family, Inputs, Layout, Output, allocate, make_inputs
from attnforge.tuner.accuracy_rules import (
    BACKWARD_FACTOR,
    FORWARD_FACTOR,
    FP32_FLOOR,
    FP32_ROUNDING,
    AccuracyReport,
    Reading,
    Rule,
    allowed_l2,
    judge_forward,
    judge_gradient,
    largest_allowed_error,
)

Launch = Callable[..., object]
"""``launch(q, k, v, out, lse, scale)`` or ``launch(dout, q, k, v, out, lse, dq, dk, dv, scale)``."""
PlannedLaunch = tuple[Any, tuple[int, int, int], tuple[torch.Tensor, ...], tuple[Any, ...], dict[str, Any]]
"""(kernel, grid, tensors, scalars, options) of a rendered module's plan."""
LARGEST_TILE = 256
"""The widest block of any config: cases built for it give every config several blocks and a tail."""
DEEP_REPEATS = 3
"""Launches of a deep gate's case that must agree to the bit: a race in a pipeline shows as a rare difference."""


class RenderedModule(Protocol):
    """What the gate needs of a rendered module; a backward's has ``workspace_shape(q)`` too."""

    plan: Callable[..., list[PlannedLaunch]]


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """A case with what a launch reads, what must come out, and how far off it may be, per batch element."""

    case: Case
    reads: tuple[torch.Tensor, ...]
    """q, k and v; for a backward dout, q, k, v, out and lse."""
    expected: dict[str, torch.Tensor]
    """out and lse, or lse, dq, dk and dv: float64."""
    allowed: dict[str, torch.Tensor]
    """Largest error by the name of the tensor: (batch,)."""
    allowed_l2: dict[str, torch.Tensor]
    """Largest relative L2 error of a gradient: (batch,)."""
    checked_rows: torch.Tensor
    """(batch, 1, seqlen_q) bool: all rows but those that see a NaN."""


def prepare(case: Case, device: torch.device) -> PreparedCase:
    """Make a case's inputs and references, on the device."""
    inputs = make_inputs(case, device)
    rows = torch.ones(len(case.families), 1, case.seqlen_q, dtype=torch.bool, device=device)
    if Family.NAN_IN_FUTURE_KEYS in case.families:
        rows[case.families.index(Family.NAN_IN_FUTURE_KEYS), :, case.last_checked_row + 1 :] = False
    if case.spec.pass_ is Pass.FORWARD:
        return _prepare_forward(case, inputs, rows)
    return _prepare_backward(case, inputs, rows)


def _prepare_forward(case: Case, inputs: Inputs, rows: torch.Tensor) -> PreparedCase:
    q, k, v = inputs.q, inputs.k.nan_to_num(nan=0.0), inputs.v
    out, lse = reference.attention(q, k, v, causal=case.spec.causal, softmax_scale=case.softmax_scale)
    eager = reference.eager_lp(q, k, v, causal=case.spec.causal, softmax_scale=case.softmax_scale).out
    rounding = FP32_FLOOR * out.abs().clamp(min=1.0) if case.dtype is DType.FP32 else torch.zeros_like(out)
    allowed = {"out": largest_allowed_error(out, eager, FORWARD_FACTOR, rounding, rows)}
    return PreparedCase(case, (q, inputs.k, v), {"out": out, "lse": lse}, allowed, {}, rows)


def _prepare_backward(case: Case, inputs: Inputs, rows: torch.Tensor) -> PreparedCase:
    tensors = inputs.dout, inputs.q, inputs.k, inputs.v
    options: dict[str, Any] = {"causal": case.spec.causal, "softmax_scale": case.softmax_scale}
    exact_out, lse = reference.attention(*tensors[1:], **options)
    out = allocate(tuple(exact_out.shape), inputs.q.dtype, inputs.q.device, case.layout, float("nan"))[1]
    out.copy_(exact_out)
    expected = reference.attention_backward(*tensors, out=out, **options)._asdict()
    eager = reference.eager_lp_backward(*tensors, **options)._asdict()
    bounds = reference.rounding_bounds(*tensors, **options)._asdict()
    operands = reference.operand_roundings(*tensors, **options)._asdict()
    allowed, limits_l2 = {}, {}
    for name, gradient in expected.items():
        rounding = FP32_ROUNDING * bounds[name]
        allowed[name] = largest_allowed_error(gradient, eager[name], BACKWARD_FACTOR, rounding)
        limits_l2[name] = allowed_l2(gradient, eager[name], rounding, operands[name], case.dtype)
    expected |= {"lse": lse}
    return PreparedCase(case, (*tensors, out, lse.float()), expected, allowed, limits_l2, rows)


def launch_of(module: RenderedModule) -> Launch:
    """Runs a rendered module's plan; a backward gets a workspace full of NaN, so that reading before writing shows."""

    def launch(*arguments: Any) -> None:
        *tensors, softmax_scale = arguments
        device = tensors[0].device
        if hasattr(module, "workspace_shape"):
            tensors.append(torch.full(module.workspace_shape(tensors[1]), float("nan"), device=device))
        with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
            for kernel, grid, pointers, scalars, options in module.plan(*tensors, softmax_scale):
                kernel[grid](*pointers, *scalars, **options)

    return launch


def check(launch: Launch, prepared: PreparedCase, repeats: int = 1) -> AccuracyReport:
    """Run a launch and judge what it wrote; then ``repeats - 1`` times more, which must give the same bits."""
    outputs = _run(launch, prepared)
    readings = [Reading(Rule.GUARD, name, output.overwritten(), 0.0) for name, output in outputs.items()]
    got = {name: output.tensor for name, output in outputs.items()}
    if prepared.case.spec.pass_ is Pass.FORWARD:
        got["lse"] = got["lse"][..., 0]
        allowed = prepared.allowed["out"]
        readings += judge_forward(got, prepared.expected, allowed, prepared.case.dtype, prepared.checked_rows)
    else:
        unseeing = prepared.expected["lse"].isneginf()
        for name, gradient in got.items():
            limits = prepared.allowed[name], prepared.allowed_l2[name]
            expected = prepared.expected[name]
            readings += judge_gradient(name, gradient, expected, *limits, unseeing if name == "dq" else None)
    for _ in range(repeats - 1):
        readings += _differences(outputs, _run(launch, prepared))
    return AccuracyReport.of(prepared.case.name, prepared.case.families, readings)


def _run(launch: Launch, prepared: PreparedCase) -> dict[str, Output]:
    """Outputs that a launch wrote into fresh guarded memory; lse has a last dim of one, for the guard's sake."""
    case = prepared.case
    q, k, v = prepared.reads if case.spec.pass_ is Pass.FORWARD else prepared.reads[1:4]
    batch, heads, seqlen_q, _ = q.shape
    layout = Layout.PACKED if case.layout is Layout.EXPANDED else case.layout
    if case.spec.pass_ is Pass.FORWARD:
        shape = (batch, heads, seqlen_q, v.shape[-1])
        outputs = {
            "out": Output.empty(shape, q.dtype, q.device, layout),
            "lse": Output.empty((batch, heads, seqlen_q, 1), torch.float32, q.device, Layout.PACKED),
        }
    else:
        shapes = {"dq": q.shape, "dk": k.shape, "dv": v.shape}
        outputs = {name: Output.empty(tuple(s), q.dtype, q.device, layout) for name, s in shapes.items()}
    tensors = (output.tensor[..., 0] if name == "lse" else output.tensor for name, output in outputs.items())
    launch(*prepared.reads, *tensors, case.softmax_scale)
    return outputs


def _differences(outputs: dict[str, Output], again: dict[str, Output]) -> list[Reading]:
    """How many elements of a second run differ from the first; two NaN are equal."""
    found = []
    for name, output in outputs.items():
        first, second = output.tensor, again[name].tensor
        differs = (first != second) & ~(first.isnan() & second.isnan())
        found.append(Reading(Rule.REPEATABLE, name, differs.flatten(1).sum(1), 0.0))
    return found


def gate_cases(spec: AttentionSpec, dtype: DType, *, deep: bool = False, tile: int = LARGEST_TILE) -> tuple[Case, ...]:
    """The cases of the gate: whole blocks, tails at both ends, and rows that see no key (causal).

    The first runs the very kernels of a problem of many whole blocks, packed tensors and a kv head for each head; the
    others share a second compilation. ``tile`` is the widest block to be tried. A deep gate adds a strided layout with
    other groups, one head without a group at another softmax scale, and sequences of one.
    """
    options: dict[str, Any] = {"spec": spec, "dtype": dtype, "families": Family.of(spec)}
    cases = [
        Case(seqlen_q=2 * tile, seqlen_k=2 * tile, kv_heads=2, **options),
        Case(seqlen_q=tile + tile // 4 + 5, seqlen_k=2 * tile + tile // 2 + 3, heads=4, kv_heads=2, **options),
    ]
    if spec.causal:
        cases.append(Case(seqlen_q=2 * tile + 1, seqlen_k=tile // 2 + 13, **options))
    if deep:
        cases += [
            Case(seqlen_q=2 * tile - 1, seqlen_k=2 * tile - 1, layout=Layout.BSHD, heads=4, **options),
            Case(seqlen_q=tile, seqlen_k=tile + 1, heads=1, scale_factor=0.5, **options),
            Case(seqlen_q=1, seqlen_k=2 * tile + 1, **options),
            Case(seqlen_q=tile + 1, seqlen_k=1, **options),
        ]
    return tuple(cases)


@lru_cache(maxsize=32)
def _prepared(case: Case, device: torch.device) -> PreparedCase:
    return prepare(case, device)


def gate(
    module: RenderedModule,
    spec: AttentionSpec,
    dtype: DType,
    device: torch.device | str,
    deep: bool = False,
    tile: int = LARGEST_TILE,
    is_deterministic: bool = True,
) -> AccuracyReport:
    """Judge a rendered module. Its inputs and references are made once for each spec, dtype and device, then kept.

    A config's own widest block as ``tile`` makes the gate quicker where time matters (in the interpreter) but keeps
    fewer references in common. A deep gate wants the same bits of repeated launches, unless the variant is not
    deterministic. Stops at the first case that fails.
    """
    reports = []
    repeats = DEEP_REPEATS if deep and is_deterministic else 1
    for case in gate_cases(spec, dtype, deep=deep, tile=tile):
        report = check(launch_of(module), _prepared(case, torch.device(device)), repeats)
        reports.append(report)
        if not report.ok:
            break
    return AccuracyReport.merged(reports)

"""The rules that a kernel's results must meet, and the report that says which one was broken and by how much.

Limits come from measurements: on needle inputs, kernels with seeded faults show row errors of at least 2.9e-2; correct
ones stay below 4.4e-3 (bf16) and 6e-4 (fp16) on all inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import torch

from attnforge.codegen import DType


class Rule(StrEnum):
    """What is asked of each tensor; where several are broken, the first of these explains most."""

    GUARD = "nothing around it may be overwritten"
    WRITTEN = "every element must be written, and be a number"
    UNSEEING = "rows that see no key must be 0, their LSE -inf"
    LSE = "the LSE must be that of the reference"
    RELATIVE_L2 = "the relative L2 error must be that of rounding"
    MAX_ERROR = "the largest error must be like that of eager attention in the same precision"
    REPEATABLE = "the same launch must give the same bits again"


ROW_L2 = {DType.FP16: 2e-3, DType.BF16: 1e-2, DType.FP32: 1e-4}
"""Largest ``|out - ref| / |ref|`` of a query row. fp32's largest is 2.5e-5, with logits of 80."""
GRADIENT_L2 = {DType.FP16: 1.5e-3, DType.BF16: 6e-3, DType.FP32: 1e-4}
"""Largest ``|grad - ref| / |ref|`` of a whole gradient; correct ones stay below 7.1e-4, 3.5e-3 and 3e-5.

Measured against the gradient for the out that the backward is given: its rounding is the forward's doing.
"""
LSE_ERROR = 1e-4
"""Largest ``|lse - ref|``, natural log."""
LSE_RELATIVE_ERROR = 2.0**-19
"""Likewise in units of ``|ref|``, where that is more (above 52). Tensor cores truncate what they add up in fp32: with
logits of 80 head dim 256 was 1.15e-4 off on an H200, in every config alike."""
FORWARD_FACTOR = 2.0
"""Largest error of out, in units of the error of eager attention in the same precision."""
BACKWARD_FACTOR = 3.0
"""Likewise of a gradient."""
L2_FACTOR = 1.5
"""Likewise of the relative L2 error of a gradient that is all cancellation, such as dq where all keys are equal."""
OPERAND_ROUNDING = 2.0
"""The unit of ``reference.operand_roundings`` for the whole of a gradient that cancels. Of 10000 single queries over
513 equal keys each, right bf16 kernels reach 1.3 (two heads) and 1.8 (one); a dq that misses one key makes 9."""
CANCELS = 2.0
"""A gradient cancels where that makes more than so many ``GRADIENT_L2``; of others it makes at most 1.7 (measured)."""
FP32_FLOOR = 5e-5
"""Error of out that fp32 may always make, absolute and relative: with logits of 80 it makes half of it."""
FP32_ROUNDING = 2.0**-22
"""The unit of ``reference.rounding_bounds``: 4 roundings of fp32, for exp2 is approximate and sums have many terms."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One rule applied to one tensor, still on the device: a value per batch element, or one for all."""

    rule: Rule
    tensor: str
    measured: torch.Tensor
    allowed: torch.Tensor | float


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule, measured on one tensor and one family of inputs."""

    rule: Rule
    tensor: str
    case: str
    family: str
    measured: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the rule is met; a NaN meets none."""
        return self.measured <= self.allowed

    def __str__(self) -> str:
        numbers = f"measured {self.measured:.3g}, allowed {self.allowed:.3g}"
        return f"{self.tensor} of {self.case}, {self.family} inputs: {self.rule} ({numbers})"


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """Everything that was measured."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every rule was met."""
        return all(finding.ok for finding in self.findings)

    @property
    def failure(self) -> Finding | None:
        """The broken rule that explains most; None when all were met."""
        broken = [finding for finding in self.findings if not finding.ok]
        return min(broken, key=lambda finding: list(Rule).index(finding.rule), default=None)

    @property
    def message(self) -> str:
        """The verdict in words."""
        return f"all {len(self.findings)} checks passed" if self.failure is None else str(self.failure)

    @staticmethod
    def of(case: str, families: Iterable[str], readings: list[Reading]) -> AccuracyReport:
        """Fetch a case's readings from their device, in one transfer."""
        names = list(families)
        columns = [m.measured.double().expand(len(names)) for m in readings]
        columns += [torch.as_tensor(m.allowed, device=columns[0].device).double().expand(len(names)) for m in readings]
        rows = torch.stack(columns).tolist()
        return AccuracyReport(
            tuple(
                Finding(m.rule, m.tensor, case, family, measured, allowed)
                for m, row, limits in zip(readings, rows, rows[len(readings) :], strict=False)
                for family, measured, allowed in zip(names, row, limits, strict=True)
            )
        )

    @staticmethod
    def merged(reports: Iterable[AccuracyReport]) -> AccuracyReport:
        """The reports of several cases as one."""
        return AccuracyReport(tuple(finding for report in reports for finding in report.findings))


def largest_allowed_error(
    reference: torch.Tensor,
    low_precision: torch.Tensor,
    factor: float,
    rounding: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Per batch element: ``factor`` times the error of eager attention in the same precision, and two floors.

    One is ``rounding``; the other FlashAttention's, twice what ``x + 0.3 - 0.3`` loses, so that a reference that is
    exact by luck does not ask for luck. Only ``rows`` count where they are given.
    """
    eager_error = (low_precision.double() - reference).abs()
    floor = 2 * ((reference + 0.3).to(low_precision.dtype).double() - 0.3 - reference).abs()
    if rows is not None:
        eager_error, floor, rounding = (x.masked_fill(~rows[..., None], 0.0) for x in (eager_error, floor, rounding))
    return factor * per_element(eager_error) + per_element(floor) + per_element(rounding)


def allowed_l2(
    reference: torch.Tensor, low_precision: torch.Tensor, rounding: torch.Tensor, operands: torch.Tensor, dtype: DType
) -> torch.Tensor:
    """Per batch element: the largest relative L2 error of a gradient, never less than what rounding may make.

    ``rounding`` is that of fp32; ``operands`` are ``reference.operand_roundings``, which count where terms cancel: an
    error of eager attention is there but one sample of rounding, at times a tenth of what the next one is.
    """
    eager = L2_FACTOR * relative_l2(low_precision, reference)
    fp32_floor = relative_l2(reference + rounding, reference)
    operand_floor = relative_l2(reference + OPERAND_ROUNDING * operands, reference)
    operand_floor = operand_floor * (operand_floor > CANCELS * GRADIENT_L2[dtype])
    return torch.maximum(torch.maximum(eager, fp32_floor), operand_floor).clamp(min=GRADIENT_L2[dtype])


def relative_l2(got: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Per batch element: the relative L2 error of the whole tensor; where the reference is 0, the error itself."""
    error, norm = (torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (got.double() - reference, reference))
    return torch.div(error, torch.where(norm == 0, 1.0, norm))


def per_element(values: torch.Tensor) -> torch.Tensor:
    """The largest value of each batch element; NaN where there is one."""
    return torch.amax(values.flatten(1), 1)


def judge_forward(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], allowed_out: torch.Tensor, dtype: DType,
    rows: torch.Tensor,
) -> list[Reading]:  # fmt: skip
    """Apply the rules to ``out`` and ``lse``, in the rows of (batch, heads or 1, seqlen_q) that are to be checked."""
    out, lse = got["out"].double(), got["lse"].double()
    error = (out - expected["out"]).masked_fill(~rows[..., None], 0.0)
    unseeing = expected["lse"].isneginf() & rows
    seeing = rows & ~unseeing
    norm = torch.linalg.vector_norm(expected["out"], dim=-1)
    row_l2 = torch.linalg.vector_norm(error, dim=-1) / torch.where(norm == 0, 1.0, norm)
    lse_error = (lse - expected["lse"]).abs()
    largest_lse = per_element(expected["lse"].masked_fill(~seeing, 0.0).abs())
    allowed_lse = (LSE_RELATIVE_ERROR * largest_lse).clamp(min=LSE_ERROR)
    return [
        Reading(Rule.WRITTEN, "out", (out.isnan() & rows[..., None]).flatten(1).sum(1), 0.0),
        Reading(Rule.WRITTEN, "lse", (lse.isnan() & rows).flatten(1).sum(1), 0.0),
        Reading(Rule.UNSEEING, "out", ((out != 0) & unseeing[..., None]).flatten(1).sum(1), 0.0),
        Reading(Rule.UNSEEING, "lse", (~lse.isneginf() & unseeing).flatten(1).sum(1), 0.0),
        Reading(Rule.LSE, "lse", per_element(lse_error.masked_fill(~seeing, 0.0)), allowed_lse),
        Reading(Rule.RELATIVE_L2, "out", per_element(row_l2.masked_fill(~seeing, 0.0)), ROW_L2[dtype]),
        Reading(Rule.MAX_ERROR, "out", per_element(error.abs()), allowed_out),
    ]


def judge_gradient(
    name: str, got: torch.Tensor, expected: torch.Tensor, allowed: torch.Tensor, allowed_l2: torch.Tensor,
    unseeing: torch.Tensor | None,
) -> list[Reading]:  # fmt: skip
    """Apply the rules to one of ``dq``, ``dk``, ``dv``; ``unseeing`` are dq's rows that see no key."""
    readings = [Reading(Rule.WRITTEN, name, got.isnan().flatten(1).sum(1), 0.0)]
    if unseeing is not None:
        count = ((got != 0) & unseeing[..., None]).flatten(1).sum(1)
        readings.append(Reading(Rule.UNSEEING, name, count, 0.0))
    return [
        *readings,
        Reading(Rule.RELATIVE_L2, name, relative_l2(got, expected), allowed_l2),
        Reading(Rule.MAX_ERROR, name, per_element((got.double() - expected).abs()), allowed),
    ]

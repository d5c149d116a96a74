"""Trials as the terminal counts them: a config of a spec is one, on however many problems it was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnforge.codegen import DType, Variant
from attnforge.compilation import Failure
from attnforge.problem import Problem
from attnforge.tuner.report.recorded_studies import RecordedStudy


@dataclass(frozen=True, slots=True)
class FailedOn:
    """How a config first failed, and on which problem."""

    problem: Problem
    failure: Failure


@dataclass(frozen=True, slots=True)
class Trial:
    """A config that was tried for a spec."""

    variant: Variant
    failed: FailedOn | None
    """On the first problem of those where it failed; None when it ran wherever it was tried."""


def trials_of(studies: Iterable[RecordedStudy]) -> tuple[Trial, ...]:
    """Every trial of the studies. Another dtype or triton is another tune, whose trials are its own."""
    found: dict[tuple[Variant, DType, str], FailedOn | None] = {}
    for study in studies:
        for variant, outcome in study.outcomes.items():
            key = variant, study.problem.dtype, study.triton
            failed = FailedOn(study.problem, outcome) if isinstance(outcome, Failure) else None
            found[key] = found.get(key) or failed
    return tuple(Trial(variant, failed) for (variant, _, _), failed in found.items())

"""Triton's interpreter, where there is no GPU: it tells whether results are right, and nothing about time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attnforge.codegen import DType, Variant, fields_of
from attnforge.compilation import Failure, FailureKind
from attnforge.kernels import load
from attnforge.problem import Problem
from attnforge.tuner.accuracy import gate
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.messages import Accurate, Comparison, NoDevice


class InterpreterDevice:
    """The CPU. The process needs TRITON_INTERPRET=1 in its environment from the start."""

    def identify(self) -> NoDevice:
        """Nothing that could be tuned for."""
        return NoDevice("the interpreter is no target")

    def measure(self, variant: Variant, problem: Problem, best_ms: dict[str, float]) -> Measurement | Failure:
        """Not what it can do."""
        return Failure(FailureKind.INVALID, "the interpreter's times mean nothing")

    def compare(
        self, variants: Sequence[Variant], problem: Problem, seed: int, own_processes: Sequence[int]
    ) -> Comparison | Failure:
        """Not what it can do."""
        return Failure(FailureKind.INVALID, "the interpreter's times mean nothing")

    def check(self, variant: Variant, dtype: DType) -> Accurate | Failure:
        """The accuracy gate, on cases as small as the config's own blocks allow."""
        fields = fields_of(variant.config)
        widest = max(value for field, value in fields.items() if "block" in field and isinstance(value, int))
        report = gate(load(_interpretable(variant)), variant.spec, dtype, torch.device("cpu"), tile=widest)
        return Accurate() if report.ok else Failure(FailureKind.ACCURACY, report.message)

    def kind_of(self, error: Exception) -> FailureKind:
        """The interpreter has no stages: whatever goes wrong goes wrong while it runs."""
        return FailureKind.LAUNCH

    def is_usable(self) -> bool:
        """Always."""
        return True


def _interpretable(variant: Variant) -> Variant:
    """Without pinned accumulators: that is inline assembly, empty, which changes no value."""
    pins = {field: False for field in fields_of(variant.config) if field.endswith("pin_accumulators")}
    fields = fields_of(variant.config) | pins
    return Variant(variant.spec, variant.schedule, variant.definition.config_type(**fields))

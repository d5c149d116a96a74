"""Search spaces of which an H200 has measured every config: what a search would find in them is known."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec

from attnforge.codegen import AttentionSpec, Config, DType, Pass, Schedule, config_type, fields_of, schedule_of
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import Failure, FailureKind
from attnforge.operations import operations
from attnforge.problem import Problem
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace, values_of
from attnforge.tuner.task import self_attention
from tests.tuner.sweep import H200, Sweep, sweeps

HOPPER_PATH = Path(__file__).parents[2] / "benchmarks" / "sweeps" / "h200-hopper-2026-11-23.json"
SHARES = {"forward": 1.0, "dkdv": 2.0 / 2.5, "dq": 1.5 / 2.5}
"""Of a pass's operations, by kernel: what the portable sweep's TFLOP/s count."""
NOT_SWEPT = Failure(FailureKind.RESOURCES, "it was excluded or failed")


@dataclass(frozen=True)
class RecordedSpace(SearchSpace):
    """A schedule's space for a spec, with what each config took on one problem."""

    problem: Problem = field(kw_only=True)

    @abstractmethod
    def outcome(self, config: Config) -> Measurement | Failure:
        """What the H200 said of a config."""

    @abstractmethod
    def best_ms(self, tried: Iterable[Config]) -> float:
        """The least that can be had of what was tried; infinite when nothing ran."""

    @cached_property
    def least_ms(self) -> float:
        """The least that there is."""
        return self.best_ms(self.configs)


@dataclass(frozen=True)
class PortableSpace(RecordedSpace):
    """The choices of which the sweep of portable measured some combination. A backward's kernels were swept apart."""

    swept: tuple[Sweep, ...] = field(kw_only=True)

    @cached_property
    def choices(self) -> Mapping[str, tuple[Choice, ...]]:
        of_kernels = {field for fields in self.kernels.values() for field in fields}
        shared = fields_of(self.swept[0].samples[0].config)
        found = {field: {value} for field, value in shared.items() if field not in of_kernels}
        for sweep in self.swept:
            for name in self.kernels[sweep.kernel]:
                found[name] = {getattr(sample.config, name) for sample in sweep.samples}
        return {field: tuple(sorted(values)) for field, values in found.items()}

    @cached_property
    def kernel_ms(self) -> dict[str, dict[tuple[Choice, ...], float]]:
        """By kernel and the values of its own fields."""
        total = operations(self.spec, self.problem) * 1e-9
        return {
            sweep.kernel: {
                values_of(sample.config, self.kernels[sweep.kernel]): SHARES[sweep.kernel] * total / sample.tflops
                for sample in sweep.samples
            }
            for sweep in self.swept
        }

    def outcome(self, config: Config) -> Measurement | Failure:
        found = {kernel: ms.get(values_of(config, self.kernels[kernel])) for kernel, ms in self.kernel_ms.items()}
        ran = {kernel: ms for kernel, ms in found.items() if ms is not None}
        return Measurement(ran, runs=1) if len(ran) == len(found) else NOT_SWEPT

    def best_ms(self, tried: Iterable[Config]) -> float:
        """Of a backward the kernels' best parts together, for that is what a tune makes of them."""
        outcomes = [outcome for outcome in map(self.outcome, tried) if isinstance(outcome, Measurement)]
        best = (min((each.kernel_ms[kernel] for each in outcomes), default=float("inf")) for kernel in self.kernel_ms)
        return sum(best)


@dataclass(frozen=True)
class HopperSpace(RecordedSpace):
    """The whole space of hopper."""

    kernel_ms: dict[Config, dict[str, float]] = field(kw_only=True, hash=False)

    def outcome(self, config: Config) -> Measurement:
        return Measurement(self.kernel_ms[config], runs=1)

    def best_ms(self, tried: Iterable[Config]) -> float:
        return min((self.outcome(config).total_ms for config in tried), default=float("inf"))


def portable_spaces() -> Iterator[PortableSpace]:
    """One for each spec and problem of which every kernel was swept."""
    by_problem: dict[tuple[AttentionSpec, Problem], list[Sweep]] = defaultdict(list)
    for sweep in sweeps():
        by_problem[sweep.spec, sweep.problem].append(sweep)
    for (spec, problem), swept in by_problem.items():
        definition = schedule_of(Schedule.PORTABLE, spec.pass_)
        if len(swept) == len(definition.kernels):
            yield PortableSpace(spec, definition, DType.BF16, H200.limits, problem=problem, swept=tuple(swept))


def hopper_spaces() -> Iterator[HopperSpace]:
    """One for each spec and problem."""
    found: dict[tuple[AttentionSpec, Problem], dict[Config, dict[str, float]]] = defaultdict(dict)
    for row in json.loads(HOPPER_PATH.read_text())["rows"]:
        pass_, head_dim = Pass(row["pass"]), row["head_dim"]
        spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=row["causal"])
        config: Config = msgspec.convert(row["config"], config_type(Schedule.HOPPER, pass_))
        found[spec, self_attention(head_dim, row["seqlen"], DType.BF16)][config] = row["ms"]
    for (spec, problem), times in found.items():
        definition = schedule_of(Schedule.HOPPER, spec.pass_)
        yield HopperSpace(spec, definition, DType.BF16, H200.limits, problem=problem, kernel_ms=times)

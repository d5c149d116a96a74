"""A tune without the GPU: compiles what the static model ranks first, drops what does not fit, ranks again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from attnforge.cache.schema import Source, Toolchain, TunedEntry
from attnforge.codegen import Config, DType, Variant, default_config, schedule_of
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import CompilePool, Failure, KernelReport, Outcome, VariantData
from attnforge.problem import Bucket, Problem
from attnforge.target import Target
from attnforge.tuner import static_model
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Accurate, CheckNumerics
from attnforge.tuner.recombination import recombined
from attnforge.tuner.result import ProblemResult, SpecResult, Verdict
from attnforge.tuner.search_space import SearchSpace, values_of
from attnforge.tuner.task import Task

LARGEST_SPILL = 512
"""Bytes a thread: the winners of a sweep on an H200 spilled up to 400."""
LEAST_GAIN = 1.10
"""Predicted, for a config to replace the default, which somebody has measured: the model errs by about that much."""


@dataclass
class SpecPrediction:
    """One spec on its problems, for a target that is not at hand."""

    task: Task
    target: Target
    toolchain: Toolchain
    pool: CompilePool
    interpreters: asyncio.Queue[Measurer]
    """Workers that run Triton's interpreter; one is taken out while it is asked."""
    compilations: int
    """How many configs to compile, the default among them."""
    _outcomes: dict[Variant, Outcome] = field(default_factory=dict)
    _verdicts: dict[Variant, Accurate | Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec, dtype, limits = self.task.spec, self.task.problems[0].dtype, self.target.limits
        schedule, default = default_config(spec, dtype, limits)
        self.default = Variant(spec, schedule, default)
        self.space = SearchSpace(spec, schedule_of(schedule, spec.pass_), dtype, limits, quick=True)

    async def predict(self) -> SpecResult:
        """Nothing is written yet."""
        await self._compile(self.default, *(self.space.variant(config) for config in self._shortlist()))
        problems = [await self._choose(problem) for problem in self.task.problems]
        failures = {variant: outcome for variant, outcome in self._outcomes.items() if isinstance(outcome, Failure)}
        failures |= {variant: v for variant, v in self._verdicts.items() if isinstance(v, Failure)}
        return SpecResult(self.task.spec, tuple(problems), len(self._outcomes), failures)

    def _shortlist(self) -> list[Config]:
        """What to compile beside the default: the best of each kernel together, then the second best, and so on.

        Kernels are compiled and ranked apart, so each compilation tells about other tiles of every kernel.
        """
        problem = self.task.problems[len(self.task.problems) // 2]
        cycles = {
            config: static_model.predict(self.task.spec, config, problem, self.target) for config in self.space.configs
        }
        chosen: list[Config] = []
        while len(chosen) < self.compilations - 1:
            config = recombined(self.space, cycles)
            if config is None:
                break
            if config != self.default.config:
                chosen.append(config)
            # The tiles just taken are out; the others move up.
            taken = {kernel: self._tile(config, kernel) for kernel in self.space.kernels}
            cycles = {
                other: {kernel: c for kernel, c in kernels.items() if self._tile(other, kernel) != taken[kernel]}
                for other, kernels in cycles.items()
            }
        return chosen

    def _tile(self, config: Config, kernel: str) -> tuple[Choice, ...]:
        return values_of(config, (*self.space.shared_fields, *self.space.kernels[kernel]))

    async def _compile(self, *variants: Variant) -> None:
        problem = self.task.problems[0]
        futures = {
            variant: asyncio.wrap_future(self.pool.submit(variant, problem, self.target)) for variant in variants
        }
        for variant, future in futures.items():
            self._outcomes[variant] = await future

    async def _choose(self, problem: Problem) -> ProblemResult:
        """The best of what compiled well, the default unless that is clearly slower; the first that is right."""
        best, default = await self._best(problem), _sum_of(self._cycles(self.default.config, problem), self.space)
        candidates = [self.default]
        if best is not None and (default is None or LEAST_GAIN * best[1] < default):
            candidates.insert(0, best[0])
        reasons = []
        for variant in candidates:
            verdict = await self._check(variant)
            if isinstance(verdict, Accurate):
                cycles = _sum_of(self._cycles(variant.config, problem), self.space)
                gain = default / cycles if default and cycles else None
                return ProblemResult(problem, Verdict.CHOSEN, self._entry(problem, variant, gain))
            reasons.append(f"{variant.config.name}: {verdict.kind}: {verdict.message}")
        return ProblemResult(problem, Verdict.NOTHING_VALID, None, "; ".join(reasons))

    async def _best(self, problem: Problem) -> tuple[Variant, float] | None:
        """The fastest by the static model, put together from kernels that compiled well, and its cycles."""
        cycles = {variant.config: self._cycles(variant.config, problem) for variant in self._outcomes}
        config = recombined(self.space, cycles)
        if config is not None and config not in cycles:
            await self._compile(self.space.variant(config))
            cycles[config] = self._cycles(config, problem)
        whole = {config: _sum_of(kernels, self.space) for config, kernels in cycles.items()}
        totals = {config: total for config, total in whole.items() if total is not None}
        if not totals:
            return None
        best = min(totals, key=lambda config: totals[config])
        return self.space.variant(best), totals[best]

    def _cycles(self, config: Config, problem: Problem) -> dict[str, float]:
        """Predicted cycles of a config's kernels; none of those that did not compile, spill badly or are serialised."""
        outcome = self._outcomes[self.space.variant(config)]
        if isinstance(outcome, Failure):
            return {}
        reports = {report.name.removesuffix("_kernel"): report for report in outcome.kernels}
        cycles = static_model.predict(self.task.spec, config, problem, self.target, reports)
        return {kernel: value for kernel, value in cycles.items() if _compiled_well(reports[kernel])}

    async def _check(self, variant: Variant) -> Accurate | Failure:
        """Its numerics in the interpreter, once a config: fp16, for the interpreter's bf16 products are wrong."""
        outcome = self._outcomes[variant]
        if isinstance(outcome, Failure):
            return outcome
        if variant not in self._verdicts:
            interpreter = await self.interpreters.get()
            try:
                request = CheckNumerics(VariantData.of(variant), DType.FP16)
                self._verdicts[variant] = await interpreter.check(request)
            finally:
                self.interpreters.put_nowait(interpreter)
        return self._verdicts[variant]

    def _entry(self, problem: Problem, variant: Variant, gain: float | None) -> TunedEntry:
        return TunedEntry(
            spec=variant.spec,
            problem=problem,
            bucket=Bucket.of(problem),
            schedule=variant.schedule,
            config=variant.config,
            source=Source.PREDICTED,
            gain=gain,
            trials=len(self._outcomes),
            created=datetime.now(UTC),
            toolchain=self.toolchain,
        )


def _sum_of(cycles: Mapping[str, float], space: SearchSpace) -> float | None:
    """The cycles of all kernels; None when one is left out."""
    return sum(cycles.values()) if len(cycles) == len(space.kernels) else None


def _compiled_well(report: KernelReport) -> bool:
    return report.spill_bytes <= LARGEST_SPILL and not report.serialised

"""A tune without the GPU: compiles what the static model ranks first, drops what does not fit, ranks again.

Of the portable schedule alone: the static model was fitted to it, and the kernels of others do not run in Triton's
interpreter, which checks the numerics.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from attnforge.cache.schema import Source, Toolchain, TunedEntry
from attnforge.codegen import Config, DType, Schedule, Variant, default_config, schedule_of
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import CompilePool, Failure, KernelReport, Outcome, VariantData
from attnforge.problem import Bucket, Problem
from attnforge.target import Target
from attnforge.tuner import static_model
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Accurate, CheckNumerics
from attnforge.tuner.progress import Phase, Standing, TuneProgress
from attnforge.tuner.recombination import recombined
from attnforge.tuner.result import ProblemResult, SpecResult, Verdict
from attnforge.tuner.search_space import SearchSpace, values_of
from attnforge.tuner.task import Task

PREDICTED = Schedule.PORTABLE
"""The schedule of every prediction."""
LARGEST_SPILL = 512
"""Bytes a thread: the winners of a sweep on an H200 spilled up to 400."""
LEAST_GAIN = 1.2
"""Predicted, for a kernel's tile to replace the default's, which somebody has measured. On the H200's sweep, tiles that
promised less than this over the default's were 0.78-1.10 times as fast, those that promised more 1.27-1.35."""


def is_predictable(task: Task, target: Target) -> bool:
    """Whether a prediction would be of use: it says what is better than portable's default, where that is what runs."""
    schedule, _ = default_config(task.spec, task.problems[0].dtype, target.limits)
    return schedule is PREDICTED


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
    progress: TuneProgress
    _compilations_done: int = 0
    _failed: Counter[str] = field(default_factory=Counter)
    """Compilations, by kind of failure."""
    _outcomes: dict[Variant, Outcome] = field(default_factory=dict)
    _verdicts: dict[Variant, Accurate | Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec, dtype, limits = self.task.spec, self.task.problems[0].dtype, self.target.limits
        self.space = SearchSpace(spec, schedule_of(PREDICTED, spec.pass_), dtype, limits, quick=True)
        self.default = self.space.variant(self.space.default)

    async def predict(self) -> SpecResult:
        """Nothing is written yet."""
        self.progress.started(self._standing)
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
        with self.progress.during(self.task.spec, Phase.COMPILING):
            self._outcomes |= zip(variants, await asyncio.gather(*map(self._compiled, variants)), strict=True)

    async def _compiled(self, variant: Variant) -> Outcome:
        outcome = await asyncio.wrap_future(self.pool.submit(variant, self.task.problems[0], self.target))
        self._compilations_done += 1
        self._failed.update([str(outcome.kind)] if isinstance(outcome, Failure) else [])
        self.progress.tried(self._standing)
        return outcome

    @property
    def _standing(self) -> Standing:
        return Standing(
            spec=self.task.spec,
            problems=len(self.task.problems),
            schedules=(PREDICTED,),
            # What is put together from them at the end is one more.
            trials=max(self.compilations, self._compilations_done),
            finished=self._compilations_done,
            failures=self._failed.copy(),
        )

    async def _choose(self, problem: Problem) -> ProblemResult:
        """The best by the static model, or else the default: the first whose numerics are right."""
        reasons = []
        for variant in dict.fromkeys((await self._best(problem), self.default)):
            verdict = await self._check(variant)
            if isinstance(verdict, Accurate):
                return ProblemResult(problem, Verdict.CHOSEN, self._entry(problem, variant))
            reasons.append(f"{variant.config.name}: {verdict.kind}: {verdict.message}")
        return ProblemResult(problem, Verdict.NOTHING_VALID, None, "; ".join(reasons))

    async def _best(self, problem: Problem) -> Variant:
        """Put together from kernels that compiled well; the default's, unless others are better by LEAST_GAIN."""
        cycles = {variant.config: self._cycles(variant.config, problem) for variant in self._outcomes}
        default = self.default.config
        cycles[default] = {kernel: value / LEAST_GAIN for kernel, value in cycles[default].items()}
        config = recombined(self.space, cycles)
        if config is None:
            return self.default
        variant = self.space.variant(config)
        if variant not in self._outcomes:
            await self._compile(variant)
        return variant if self._total(variant, problem) is not None else self.default

    def _total(self, variant: Variant, problem: Problem) -> float | None:
        """Predicted cycles; None when a kernel did not compile well."""
        cycles = self._cycles(variant.config, problem)
        return sum(cycles.values()) if len(cycles) == len(self.space.kernels) else None

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
                with self.progress.during(self.task.spec, Phase.CHECKING):
                    self._verdicts[variant] = await interpreter.check(request)
            finally:
                self.interpreters.put_nowait(interpreter)
        return self._verdicts[variant]

    def _entry(self, problem: Problem, variant: Variant) -> TunedEntry:
        default, chosen = self._total(self.default, problem), self._total(variant, problem)
        return TunedEntry(
            spec=variant.spec,
            problem=problem,
            bucket=Bucket.of(problem),
            schedule=variant.schedule,
            config=variant.config,
            source=Source.PREDICTED,
            gain=default / chosen if default and chosen else None,
            trials=len(self._outcomes),
            created=datetime.now(UTC),
            toolchain=self.toolchain,
        )


def _compiled_well(report: KernelReport) -> bool:
    return report.spill_bytes <= LARGEST_SPILL and not report.serialised

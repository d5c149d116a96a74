"""Searches the committed sweep instead of a GPU: ``python -m tests.tuner.replay [tpe|random|exhaustive ...]``.

Prints by how much the best found is slower than the sweep's best, after so many trials: the median over problems and
seeds, and the worst.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import median

from attnforge.codegen import AttentionSpec, Config, DType, Pass, Schedule, fields_of, schedule_of
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import Failure, FailureKind
from attnforge.problem import Problem
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace, values_of
from attnforge.tuner.strategy import StrategyName, strategy_of
from tests.tuner.sweep import H200, Sweep, sweeps

BUDGETS = (4, 8, 12, 16, 24, 32, 48)
SEEDS = 20
OPERATIONS = {"forward": 1.0, "dkdv": 2.0, "dq": 1.5}
"""Of a kernel, as multiples of the forward's: what the sweep's TFLOP/s count."""
NOT_SWEPT = Failure(FailureKind.RESOURCES, "it was excluded or failed")


@dataclass(frozen=True)
class SweptSpace(SearchSpace):
    """The choices of which the sweep measured some combination, on one problem."""

    problem: Problem | None = None
    swept: tuple[Sweep, ...] = ()

    @cached_property
    def choices(self) -> Mapping[str, tuple[Choice, ...]]:
        of_kernels = {field for fields in self.kernels.values() for field in fields}
        shared = fields_of(self.swept[0].samples[0].config)
        found = {field: {value} for field, value in shared.items() if field not in of_kernels}
        for sweep in self.swept:
            for field in self.kernels[sweep.kernel]:
                found[field] = {getattr(sample.config, field) for sample in sweep.samples}
        return {field: tuple(sorted(values)) for field, values in found.items()}

    @cached_property
    def relative_ms(self) -> dict[str, dict[tuple[Choice, ...], float]]:
        """By kernel and the values of its own fields."""
        return {
            sweep.kernel: {
                values_of(sample.config, self.kernels[sweep.kernel]): OPERATIONS[sweep.kernel] / sample.tflops
                for sample in sweep.samples
            }
            for sweep in self.swept
        }

    def outcome(self, config: Config) -> Measurement | Failure:
        times = {k: ms.get(values_of(config, self.kernels[k])) for k, ms in self.relative_ms.items()}
        found = {kernel: ms for kernel, ms in times.items() if ms is not None}
        return Measurement(found, runs=1) if len(found) == len(times) else NOT_SWEPT


def replayed_spaces() -> Iterator[SweptSpace]:
    """A space for each spec and problem of which every kernel was swept."""
    by_problem: dict[tuple[AttentionSpec, Problem], list[Sweep]] = defaultdict(list)
    for sweep in sweeps():
        by_problem[sweep.spec, sweep.problem].append(sweep)
    for (spec, problem), swept in by_problem.items():
        definition = schedule_of(Schedule.PORTABLE, spec.pass_)
        if len(swept) == len(definition.kernels):
            yield SweptSpace(spec, definition, DType.BF16, H200.limits, problem=problem, swept=tuple(swept))


def regrets(space: SweptSpace, name: StrategyName, seed: int, trials: int) -> list[float]:
    """After each trial, the share by which the best known is slower than the sweep's best.

    The default comes first, as in a tune. A backward's kernels count apart: the tuner puts their best parts together.
    """
    strategy, known = strategy_of(name, space, seed), set[Config]()
    best: dict[str, float] = {}
    least = sum(min(times.values()) for times in space.relative_ms.values())
    config: Config | None = space.default
    found = []
    for _ in range(trials):
        if config is None:
            break
        known.add(config)
        outcome = space.outcome(config)
        strategy.tell(config, outcome)
        if isinstance(outcome, Measurement):
            best = {k: min(ms, best.get(k, ms)) for k, ms in outcome.kernel_ms.items()}
        found.append(sum(best.values()) / least - 1 if best else float("inf"))
        config = strategy.propose(known)
    return found + found[-1:] * (trials - len(found))


def main(names: list[StrategyName]) -> None:
    spaces = list(replayed_spaces())
    for pass_, name in product(Pass, names):
        of_pass = [space for space in spaces if space.spec.pass_ is pass_]
        if not of_pass:
            continue
        seeds = 1 if name is StrategyName.EXHAUSTIVE else SEEDS
        runs = [regrets(space, name, seed, max(BUDGETS)) for space in of_pass for seed in range(seeds)]
        sizes = sorted(len(space.configs) for space in of_pass)
        print(f"{pass_}, {name}: {len(of_pass)} problems of {sizes[0]} to {sizes[-1]} configs, {seeds} seeds")
        for budget in BUDGETS:
            at = [run[budget - 1] for run in runs]
            print(f"  {budget:3} trials: median {median(at):6.1%}, mean {sum(at) / len(at):6.1%}, worst {max(at):6.1%}")


if __name__ == "__main__":
    main([StrategyName(word) for word in sys.argv[1:]] or list(StrategyName))

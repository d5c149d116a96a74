"""Searches the committed sweep of the portable schedule, not a GPU: ``python -m tests.tuner.replay [--plot FILE]``.

Prints for every strategy by how much the best found is slower than the sweep's best, after so many trials and after a
tenth of those that an exhaustive search takes: the median over problems and seeds, the mean and the worst. Searches
start with nothing known (the default config, which a tune tries first, was itself chosen by this sweep), or with
--default as a tune does.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt

from attnforge.codegen import AttentionSpec, Config, DType, Pass, Schedule, fields_of, schedule_of
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import Failure, FailureKind
from attnforge.problem import Problem
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import predictor
from attnforge.tuner.sampler import TpeSampler
from attnforge.tuner.search_space import SearchSpace, values_of
from attnforge.tuner.strategy import Strategy, StrategyName, strategy_of
from tests.tuner.sweep import H200, Sweep, sweeps

BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Up to what a tune tries."""
SEEDS = 20
OPERATIONS = {"forward": 1.0, "dkdv": 2.0, "dq": 1.5}
"""Of a kernel, as multiples of the forward's: what the sweep's TFLOP/s count."""
NOTHING_YET = 1.0
"""Regret while no config has run: as if twice as slow as the best."""
NOT_SWEPT = Failure(FailureKind.RESOURCES, "it was excluded or failed")


@dataclass(frozen=True)
class SweptSpace(SearchSpace):
    """The choices of which the sweep measured some combination, on one problem."""

    problem: Problem = field(kw_only=True)
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


Maker = Callable[[SweptSpace, int], Strategy]
"""A strategy for a space and a seed."""
STRATEGIES: dict[str, Maker] = {
    "ranked tpe": lambda space, seed: strategy_of(StrategyName.TPE, space, seed, predictor(space, space.problem, H200)),
    "tpe": TpeSampler,
    "random": lambda space, seed: strategy_of(StrategyName.RANDOM, space, seed),
}
"""What attnforge tune does, that without the static model, and what both must beat."""


def replayed_spaces() -> Iterator[SweptSpace]:
    """A space for each spec and problem of which every kernel was swept."""
    by_problem: dict[tuple[AttentionSpec, Problem], list[Sweep]] = defaultdict(list)
    for sweep in sweeps():
        by_problem[sweep.spec, sweep.problem].append(sweep)
    for (spec, problem), swept in by_problem.items():
        definition = schedule_of(Schedule.PORTABLE, spec.pass_)
        if len(swept) == len(definition.kernels):
            yield SweptSpace(spec, definition, DType.BF16, H200.limits, problem=problem, swept=tuple(swept))


def regrets(space: SweptSpace, make: Maker, seed: int, trials: int, starts_with_default: bool = True) -> list[float]:
    """After each trial, the share by which the best known is slower than the sweep's best.

    A backward's kernels count apart: the tuner puts their best parts together.
    """
    strategy, known = make(space, seed), set[Config]()
    best: dict[str, float] = {}
    least = sum(min(times.values()) for times in space.relative_ms.values())
    config = space.default if starts_with_default else strategy.propose(known)
    found = []
    for _ in range(trials):
        if config is None:
            break
        known.add(config)
        outcome = space.outcome(config)
        strategy.tell(config, outcome)
        if isinstance(outcome, Measurement):
            best = {k: min(ms, best.get(k, ms)) for k, ms in outcome.kernel_ms.items()}
        found.append(sum(best.values()) / least - 1 if best else NOTHING_YET)
        config = strategy.propose(known)
    return found + found[-1:] * (trials - len(found))


@dataclass(frozen=True)
class Replayed:
    """All searches of a strategy for a pass."""

    pass_: Pass
    name: str
    sizes: tuple[int, ...]
    """Configs of each problem's space."""
    runs: tuple[tuple[tuple[float, ...], ...], ...]
    """Regret after each trial, by problem and seed."""

    def after(self, trials: int) -> list[float]:
        return [run[trials - 1] for of_problem in self.runs for run in of_problem]

    def after_share(self, share: float) -> list[float]:
        """After so much of an exhaustive search, and a tune's trials at most."""
        at = [min(max(BUDGETS), max(1, round(share * size))) for size in self.sizes]
        return [run[trials - 1] for of_problem, trials in zip(self.runs, at, strict=True) for run in of_problem]

    def lines(self) -> Iterator[str]:
        yield f"{self.pass_}, {self.name}: {len(self.sizes)} problems of {min(self.sizes)} to {max(self.sizes)} configs"
        rows = [(f"{trials:3} trials", self.after(trials)) for trials in BUDGETS]
        for words, found in [*rows, (" a tenth of all", self.after_share(0.1))]:
            mean = sum(found) / len(found)
            yield f"  {words:15}: median {median(found):7.1%}, mean {mean:7.1%}, worst {max(found):7.1%}"


def replay(pass_: Pass, name: str, starts_with_default: bool) -> Replayed:
    """One strategy on all problems of a pass."""
    spaces = [space for space in replayed_spaces() if space.spec.pass_ is pass_]
    runs = tuple(
        tuple(tuple(regrets(space, STRATEGIES[name], seed, max(BUDGETS), starts_with_default)) for seed in range(SEEDS))
        for space in spaces
    )
    return Replayed(pass_, name, tuple(len(space.configs) for space in spaces), runs)


def plot(replays: list[Replayed], path: Path) -> None:
    """The mean regret over the trials, a curve for each strategy, a picture for each pass."""
    figure, all_axes = plt.subplots(1, len(Pass), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, pass_ in zip(all_axes, Pass, strict=True):
        of_pass = [each for each in replays if each.pass_ is pass_]
        for each in of_pass:
            means = [sum(each.after(n)) / len(each.after(n)) for n in range(1, max(BUDGETS) + 1)]
            axes.plot(range(1, len(means) + 1), [100 * mean for mean in means], label=each.name)
        axes.axhline(2, color="grey", linewidth=0.8, linestyle=":")
        sizes = of_pass[0].sizes
        axes.set(title=f"{pass_}: {len(sizes)} problems of {min(sizes)} to {max(sizes)} configs", xlabel="trials")
        axes.set_yscale("symlog", linthresh=1)
    all_axes[0].set_ylabel("slower than the best, % (mean)")
    all_axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--default", action="store_true", help="start with the default config")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture too")
    options = parser.parse_args()
    jobs = [(pass_, name, options.default) for pass_ in Pass for name in STRATEGIES]
    replays = []
    with ProcessPoolExecutor() as pool:
        for each in pool.map(replay, *zip(*jobs, strict=True)):
            replays.append(each)
            print("\n".join(each.lines()), flush=True)
    if options.plot:
        plot(replays, options.plot)


if __name__ == "__main__":
    main()

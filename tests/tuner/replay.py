"""Searches the committed sweeps of an H200 instead of a GPU: ``python -m tests.tuner.replay [--plot FILE]``.

Prints for every strategy by how much the best found is slower than the sweep's best, after so many trials and after a
tenth of those that an exhaustive search takes: the median over problems and seeds, the mean and the worst. What a
search is told is 1 % off, as measurements are. Searches of portable start with nothing known, for its default was
chosen by this sweep; those of hopper with the default, which tells where to look.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean, median

import matplotlib.pyplot as plt

from attnforge.codegen import Pass, Schedule, Variant
from attnforge.compilation import Failure
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import predictors
from attnforge.tuner.strategy import Strategy, StrategyName, strategy_of
from tests.tuner.optuna_strategy import OptunaStrategy, cma_es
from tests.tuner.recorded import RecordedSpace, hopper_spaces, portable_spaces
from tests.tuner.sweep import H200

BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Up to what a tune tries."""
SEEDS = 20
NOISE = 0.01
"""Standard deviation of a measurement's logarithm."""
NOTHING_YET = 1.0
"""Regret while no config has run: as if twice as slow as the best."""
FEWEST = 16
"""Spaces of fewer configs need no search: a tune tries them all."""

Maker = Callable[[RecordedSpace, int], Strategy]
"""A strategy for a space and a seed."""


def gaussian(space: RecordedSpace, seed: int) -> Strategy:
    """What a tune does within one schedule."""
    spaces = {space.definition.schedule: space}
    return strategy_of(StrategyName.GAUSSIAN, spaces, seed, predictors(spaces, space.problem, H200))


def unranked(space: RecordedSpace, seed: int) -> Strategy:
    """That without the static model."""
    return strategy_of(StrategyName.GAUSSIAN, {space.definition.schedule: space}, seed)


def at_random(space: RecordedSpace, seed: int) -> Strategy:
    """What all must beat."""
    return strategy_of(StrategyName.RANDOM, {space.definition.schedule: space}, seed)


def by_cma_es(space: RecordedSpace, seed: int) -> Strategy:
    """Optuna's CMA-ES."""
    return OptunaStrategy(space, seed, cma_es)


GAUSSIAN, UNRANKED, TPE, RANDOM = "gaussian", "gaussian, no static model", "tpe", "random"
STRATEGIES: dict[str, Maker] = {
    GAUSSIAN: gaussian,
    UNRANKED: unranked,
    TPE: OptunaStrategy,
    "cma-es": by_cma_es,
    RANDOM: at_random,
}


def noisy(outcome: Measurement | Failure, generator: random.Random, noise: float = NOISE) -> Measurement | Failure:
    """What a GPU might say instead."""
    if isinstance(outcome, Failure):
        return outcome
    return Measurement({k: ms * math.exp(generator.gauss(0, noise)) for k, ms in outcome.kernel_ms.items()}, runs=1)


def regrets(space: RecordedSpace, make: Maker, seed: int, trials: int) -> list[float]:
    """After each trial, the share by which the best that can be had of the known is slower than the sweep's best."""
    strategy, known = make(space, seed), list[Variant]()
    generator = random.Random(seed)
    is_portable = space.definition.schedule is Schedule.PORTABLE
    variant = strategy.propose(known) if is_portable else space.variant(space.default)
    found = []
    while variant is not None and len(known) < trials:
        known.append(variant)
        strategy.tell(variant, noisy(space.outcome(variant.config), generator))
        regret = space.best_ms(each.config for each in known) / space.least_ms - 1
        found.append(regret if regret < math.inf else NOTHING_YET)
        variant = strategy.propose(known)
    return found + found[-1:] * (trials - len(found))


@dataclass(frozen=True)
class Sweep:
    """Problems of a schedule and pass that are searched."""

    schedule: Schedule
    pass_: Pass

    def __str__(self) -> str:
        return f"{self.schedule} {self.pass_}"

    @property
    def spaces(self) -> list[RecordedSpace]:
        """One for each problem."""
        return [each for each in _spaces(self.schedule) if each.spec.pass_ is self.pass_]


@cache
def _spaces(schedule: Schedule) -> tuple[RecordedSpace, ...]:
    found = portable_spaces() if schedule is Schedule.PORTABLE else hopper_spaces()
    return tuple(space for space in found if len(space.configs) >= FEWEST)


SWEEPS = tuple(Sweep(schedule, pass_) for schedule, pass_ in product(Schedule, Pass))


@dataclass(frozen=True)
class Replayed:
    """All searches of a strategy in a sweep."""

    sweep: Sweep
    name: str
    sizes: tuple[int, ...]
    """Configs of each problem's space."""
    runs: tuple[tuple[tuple[float, ...], ...], ...]
    """Regret after each trial, by problem and seed."""

    @property
    def title(self) -> str:
        """What was searched."""
        return f"{self.sweep}: {len(self.sizes)} problems of {min(self.sizes)} to {max(self.sizes)} configs"

    def after(self, trials: int) -> list[float]:
        """Of every run."""
        return [run[trials - 1] for of_problem in self.runs for run in of_problem]

    def after_share(self, share: float) -> list[float]:
        """After so much of an exhaustive search, and a tune's trials at most."""
        at = [min(max(BUDGETS), max(1, round(share * size))) for size in self.sizes]
        return [run[trials - 1] for of_problem, trials in zip(self.runs, at, strict=True) for run in of_problem]

    def lines(self) -> Iterator[str]:
        """What to print."""
        yield f"{self.title}, {self.name}"
        rows = [(f"{trials:3} trials", self.after(trials)) for trials in BUDGETS]
        for words, found in [*rows, (" a tenth of all", self.after_share(0.1))]:
            yield f"  {words:15}: median {median(found):7.2%}, mean {mean(found):7.2%}, worst {max(found):7.2%}"


def replay(sweep: Sweep, name: str, seeds: int = SEEDS, trials: int = max(BUDGETS)) -> Replayed:
    """One strategy on all problems of a sweep."""
    runs = tuple(
        tuple(tuple(regrets(space, STRATEGIES[name], seed, trials)) for seed in range(seeds)) for space in sweep.spaces
    )
    return Replayed(sweep, name, tuple(len(space.configs) for space in sweep.spaces), runs)


def plot(replays: Sequence[Replayed], path: Path) -> None:
    """The mean regret over the trials, a curve for each strategy, a picture for each sweep."""
    figure, all_axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
    for axes, sweep in zip(all_axes.flat, SWEEPS, strict=True):
        of_sweep = [each for each in replays if each.sweep == sweep]
        for each in of_sweep:
            means = [100 * mean(each.after(n)) for n in range(1, max(BUDGETS) + 1)]
            colour = f"C{list(STRATEGIES).index(each.name)}"
            axes.plot(range(1, len(means) + 1), means, label=each.name, color=colour)
        axes.axhline(2, color="grey", linewidth=0.8, linestyle=":")
        axes.set_title(of_sweep[0].title, fontsize="medium")
        axes.set_yscale("symlog", linthresh=1)
    for axes in all_axes[:, 0]:
        axes.set_ylabel("slower than the best, % (mean)")
    for axes in all_axes[-1]:
        axes.set_xlabel("trials")
    all_axes[0, 0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Replay everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture too")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    jobs = [
        (sweep, name, options.seeds)
        for sweep, name in product(SWEEPS, STRATEGIES)
        if sweep.schedule is Schedule.PORTABLE or name != UNRANKED  # which hopper is anyway
    ]
    replays = []
    with ProcessPoolExecutor() as pool:
        for each in pool.map(replay, *zip(*jobs, strict=True)):
            replays.append(each)
            print("\n".join(each.lines()), flush=True)
    if options.plot:
        plot(replays, options.plot)


if __name__ == "__main__":
    main()

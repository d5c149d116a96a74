"""Searches the committed exhaustive sweep of the hopper schedule: ``python -m tests.tuner.replay_hopper``.

Prints for a tune, TPE alone and random search by how much the best found is slower than the best of all, after
as many trials and after a tenth of all: the default config comes first, as in a tune.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, median

import msgspec

from attnforge.codegen import AttentionSpec, Config, DType, Pass, Schedule, config_type, schedule_of
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.sampler import TpeSampler
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.strategy import StrategyName, strategy_of
from tests.tuner.replay import Maker
from tests.tuner.sweep import H200

PATH = Path(__file__).parents[2] / "benchmarks" / "sweeps" / "h200-hopper-2026-11-23.json"
BUDGETS, SEEDS, FEWEST = (1, 2, 3, 4, 6, 8, 12, 24), 20, 16
"""Spaces of fewer configs than the last need no search: a tune tries them all."""
STRATEGIES: dict[str, Maker] = {
    "beside the default, then tpe": lambda space, seed: strategy_of(StrategyName.TPE, space, seed),
    "tpe": TpeSampler,
    "random": lambda space, seed: strategy_of(StrategyName.RANDOM, space, seed),
}


@dataclass(frozen=True)
class RecordedSpace(SearchSpace):
    """A spec's whole space on one problem, with what each config took."""

    seqlen: int = field(kw_only=True)
    kernel_ms: dict[Config, dict[str, float]] = field(kw_only=True, hash=False)

    @cached_property
    def least_ms(self) -> float:
        return min(sum(ms.values()) for ms in self.kernel_ms.values())

    def outcome(self, config: Config) -> Measurement:
        return Measurement(self.kernel_ms[config], runs=1)


def recorded_spaces() -> Iterator[RecordedSpace]:
    """Every spec and sequence length of the sweep."""
    found: dict[tuple[AttentionSpec, int], dict[Config, dict[str, float]]] = defaultdict(dict)
    for row in json.loads(PATH.read_text())["rows"]:
        pass_, head_dim = Pass(row["pass"]), row["head_dim"]
        spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=row["causal"])
        config: Config = msgspec.convert(row["config"], config_type(Schedule.HOPPER, pass_))
        found[spec, row["seqlen"]][config] = row["ms"]
    for (spec, seqlen), times in found.items():
        definition = schedule_of(Schedule.HOPPER, spec.pass_)
        yield RecordedSpace(spec, definition, DType.BF16, H200.limits, seqlen=seqlen, kernel_ms=times)


def regrets(space: RecordedSpace, make: Maker, seed: int, trials: int) -> list[float]:
    """After each trial, the share by which the best known is slower than the sweep's best."""
    strategy, known = make(space, seed), set[Config]()
    config: Config | None = space.default
    found, best = list[float](), float("inf")
    while config is not None and len(found) < trials:
        known.add(config)
        outcome = space.outcome(config)
        strategy.tell(config, outcome)
        best = min(best, outcome.total_ms)
        found.append(best / space.least_ms - 1)
        config = strategy.propose(known)
    return found + found[-1:] * (trials - len(found))


def tenth(space: RecordedSpace) -> int:
    """Trials that are a tenth of an exhaustive search."""
    return max(1, round(0.1 * len(space.kernel_ms)))


if __name__ == "__main__":
    spaces = [space for space in recorded_spaces() if len(space.kernel_ms) >= FEWEST]
    for name, make in STRATEGIES.items():
        runs = [(space, regrets(space, make, seed, max(BUDGETS))) for space in spaces for seed in range(SEEDS)]
        means = "  ".join(f"{trials}: {mean(run[trials - 1] for _, run in runs):.1%}" for trials in BUDGETS)
        after = [run[tenth(space) - 1] for space, run in runs]
        print(f"{name}: mean after trials {means}; after a tenth: median {median(after):.1%}, mean {mean(after):.1%}")

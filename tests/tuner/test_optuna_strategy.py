"""TPE, which the Gaussian process is compared with, is one that deserves it."""

import random
from math import log2
from statistics import mean

import pytest

from attnforge.codegen import AttentionSpec, Config, DType, Limits, Pass, Variant, fields_of
from attnforge.codegen.schedules import schedule_of
from attnforge.codegen.schedules.base import Schedule
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace
from tests.tuner.optuna_strategy import OptunaStrategy

REFUSED = Failure(FailureKind.COMPILE, "refused")


def space_of(pass_: Pass, head_dim: int = 80) -> SearchSpace:
    spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=False)
    return SearchSpace(spec, schedule_of(Schedule.PORTABLE, pass_), DType.BF16, Limits("sm_90", 232448))


def measurement(config: Config) -> Measurement:
    """Each kernel is fastest at tiles of 64 x 64 and 3 stages, and a third slower when padded."""
    fields = fields_of(config)
    slower = 1.3 if fields["head_dim_split"] == "padded" else 1.0
    times: dict[str, float] = {}
    for prefix in ("dkdv_", "dq_") if "dq_block_m" in fields else ("",):
        m, n, w, s = (int(fields[prefix + f]) for f in ("block_m", "block_n", "num_warps", "num_stages"))
        steps = abs(log2(m / 64)) + abs(log2(n / 64)) + abs(log2(w / 4)) + abs(s - 3)
        times[prefix.removesuffix("_") or "forward"] = slower * (1 + 0.3 * steps)
    return Measurement(times, runs=5)


def found(sampler: OptunaStrategy, trials: int) -> list[Variant]:
    variants: list[Variant] = []
    for _ in range(trials):
        variant = sampler.propose(variants)
        assert variant is not None
        variants.append(variant)
        sampler.tell(variant, measurement(variant.config))
    return variants


@pytest.mark.parametrize("pass_", list(Pass))
def test_it_proposes_what_is_not_known_until_nothing_is_left(pass_: Pass) -> None:
    space = space_of(pass_, 256 if pass_ is Pass.FORWARD else 64)
    trials = min(len(space.configs), 60)
    sampler = OptunaStrategy(space, seed=1)
    variants = found(sampler, trials)
    assert len(set(variants)) == trials
    assert set(variants) <= set(space.variants)
    assert sampler.propose(set(space.variants)) is None


def test_it_beats_random_search_though_some_configs_fail() -> None:
    space, trials = space_of(Pass.BACKWARD), 24
    others = list(space.variants)[:10]

    def best_of(variants: list[Variant]) -> float:
        return min(measurement(variant.config).total_ms for variant in variants)

    def by_tpe(seed: int) -> float:
        sampler = OptunaStrategy(space, seed)
        for variant in others:
            sampler.tell(variant, REFUSED)
        return best_of(found(sampler, trials))

    randomly = mean(best_of(random.Random(seed).sample(list(space.variants), trials)) for seed in range(8))
    assert mean(map(by_tpe, range(8))) < randomly

import random
from math import log2
from statistics import mean

import pytest

from attnforge.codegen import AttentionSpec, Config, DType, Limits, Pass, fields_of
from attnforge.codegen.schedules import default_config, schedule_of
from attnforge.codegen.schedules.base import Schedule
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.sampler import TpeSampler
from attnforge.tuner.search_space import SearchSpace

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


@pytest.mark.parametrize("pass_", list(Pass))
def test_it_proposes_what_is_not_known_until_nothing_is_left(pass_: Pass) -> None:
    space = space_of(pass_, 256 if pass_ is Pass.FORWARD else 64)
    sampler, known = TpeSampler(space, seed=1), set()
    for _ in range(min(len(space.configs), 60)):
        config = sampler.propose(known)
        assert config is not None
        assert config not in known
        assert space.admits(config)
        known.add(config)
        sampler.tell(config, measurement(config))
    assert (sampler.propose(set(space.configs)), len(known)) == (None, min(len(space.configs), 60))


def test_the_same_seed_proposes_the_same() -> None:
    space = space_of(Pass.BACKWARD)
    assert found(TpeSampler(space, 3), space, 12) == found(TpeSampler(space, 3), space, 12)


def found(sampler: TpeSampler, space: SearchSpace, trials: int) -> list[Config]:
    configs: list[Config] = []
    for _ in range(trials):
        config = sampler.propose(configs)
        assert config is not None
        configs.append(config)
        sampler.tell(config, measurement(config))
    return configs


def test_it_learns_what_others_tried_and_copes_with_failures() -> None:
    space = space_of(Pass.BACKWARD)
    sampler = TpeSampler(space, seed=0)
    outside = default_config(space.spec, DType.FP32, space.limits)[1]  # tiles that the space has not
    sampler.tell(outside, measurement(outside))
    known = set(space.configs[:40])
    for index, config in enumerate(known):
        sampler.tell(config, REFUSED if index % 2 else measurement(config))
    assert sampler.propose(known) not in known


def test_it_beats_random_search() -> None:
    space, trials = space_of(Pass.BACKWARD), 24

    def best_of(configs: list[Config]) -> float:
        return min(measurement(config).total_ms for config in configs)

    tpe = mean(best_of(found(TpeSampler(space, seed), space, trials)) for seed in range(8))
    randomly = mean(best_of(random.Random(seed).sample(space.configs, trials)) for seed in range(8))
    assert tpe < randomly

"""Studies and a tuned cache to report on, made with the tuner's own Study and the cache's own store: no GPU."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from math import log2

from msgspec import structs

from attnforge.cache.schema import Conditions, GpuState, Source, Throttle, Toolchain, TunedEntry, Versions
from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, fields_of
from attnforge.codegen.schedules.portable import BACKWARD, FORWARD
from attnforge.compilation import Failure, FailureKind
from attnforge.problem import Bucket, Problem
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.study import Studies
from attnforge.tuner.task import self_attention
from attnforge.tuner.trial import Outcome

H200 = Target(arch="sm_90", name="NVIDIA H200", sm_count=132, shared_memory=232448)
TOOLCHAIN = Toolchain(triton="3.6.0", torch="2.11.0+cu130", templates="0123456789abcdef")
VERSIONS = Versions(TOOLCHAIN.triton, TOOLCHAIN.torch)
QUIET = GpuState(sm_mhz=1980, temperature_c=41, power_w=480.0, throttled=(Throttle.POWER_CAP,), other_processes=0)
"""A GPU that nothing disturbs: large attention runs against the board's power cap."""
HOSTILE = "<script>alert('x')</script>\n<img src=https://example.org/x.png>"
FAILURES = (
    Failure(FailureKind.RESOURCES, "needs 262144 bytes of shared memory, the target has 232448"),
    Failure(FailureKind.COMPILE, f"error: {HOSTILE}"),
    Failure(FailureKind.ACCURACY, "out is wrong: 0.31 of tolerance 0.02 at (0, 3, 117, 5)"),
    Failure(FailureKind.TIMEOUT, "passed its deadline of 20 s; its process group was killed"),
)


def a_spec(pass_: Pass = Pass.FORWARD, head_dim: int = 64, causal: bool = True) -> AttentionSpec:
    return AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)


def milliseconds(variant: Variant, problem: Problem, noise: random.Random) -> dict[str, float]:
    """A formula's times: block_m decides much, num_stages little, by kernel."""
    times = {}
    for kernel, names in variant.definition.kernels.items():
        fields = fields_of(variant.config)
        wishes = {"block_m": (64, 0.5), "block_n": (64, 0.2), "num_warps": (4, 0.1), "num_stages": (3, 0.03)}
        cost = sum(
            weight * abs(log2(int(fields[name])) - log2(best))
            for name in names
            for ending, (best, weight) in wishes.items()
            if name.endswith(ending)
        )
        times[kernel] = problem.seqlen_q / 4096 * (1 + cost) * noise.uniform(0.98, 1.02)
    return times


def record_study(
    settings: Settings,
    spec: AttentionSpec,
    problem: Problem,
    *,
    target: Target = H200,
    trials: int = 24,
    failures: Sequence[Failure] = FAILURES,
    versions: Versions = VERSIONS,
) -> dict[Variant, Outcome]:
    """A study of portable whose first trial is its default config and whose every fifth trial fails.

    The same configs come in the same order on every problem of a spec, as in a tune.
    """
    noise = random.Random(0)
    definition = FORWARD if spec.pass_ is Pass.FORWARD else BACKWARD
    space = SearchSpace(spec, definition, problem.dtype, target.limits)
    config, configs = space.default, list(space.configs)
    noise.shuffle(configs)
    ordered = [config, *(each for each in configs if each != config)][:trials]
    study = Studies(settings, target).study(spec, problem, versions)
    for place, each in enumerate(ordered):
        variant = space.variant(each)
        failed = failures and place % 5 == 4
        study.record(
            variant,
            failures[place // 5 % len(failures)] if failed else Measurement(milliseconds(variant, problem, noise), 9),
        )
    return study.outcomes


def entry_of(spec: AttentionSpec, problem: Problem, outcomes: dict[Variant, Outcome]) -> TunedEntry:
    """The entry that a tune would write: the fastest config, and the default's time beside it."""
    measured = {variant: found for variant, found in outcomes.items() if isinstance(found, Measurement)}
    winner, best = min(measured.items(), key=lambda pair: pair[1].total_ms)
    default = next(iter(measured.values()))
    return TunedEntry(
        spec=spec,
        problem=problem,
        bucket=Bucket.of(problem),
        schedule=Schedule.PORTABLE,
        config=winner.config,
        source=Source.MEASURED,
        median_ms=best.total_ms,
        default_ms=default.total_ms,
        tflops=400.0,
        gain=default.total_ms / best.total_ms,
        trials=len(outcomes),
        created=datetime(2026, 11, 23, 12, 30, tzinfo=UTC),
        toolchain=TOOLCHAIN,
        conditions=(Conditions(before=QUIET, after=structs.replace(QUIET, sm_mhz=1815, power_w=690.4)),),
    )


def tune(settings: Settings, specs: Sequence[AttentionSpec], seqlens: Sequence[int] = (1024, 4096)) -> None:
    """Studies and a tuned cache of the H200, as a tune leaves them."""
    entries = []
    for spec in specs:
        for place, seqlen in enumerate(seqlens):
            problem = self_attention(spec.head_dim, seqlen, DType.BF16)
            entries.append(entry_of(spec, problem, record_study(settings, spec, problem, trials=24 + 5 * place)))
    TunedCacheStore(settings).write(H200, entries)

from pathlib import Path

import pytest
from msgspec import structs

from attnforge.cache.schema import Source, Toolchain, TunedEntry
from attnforge.cache.store import LoadedCache, Origin
from attnforge.codegen import DType, Limits, Pass, Schedule, Variant, default_config, schedule_of, schedules
from attnforge.dispatch.decision import Decision, DecisionKind, best_by_kind, decide, matches, smaller_defaults
from attnforge.problem import Bucket, Problem
from attnforge.target import Target
from tests.runtime.cache.entries import EARLY, LATE, a_cache, a_config, a_problem, a_spec, measured, predicted

SM_90 = Target.for_arch("sm_90")
SM_80 = Target.for_arch("sm_80")
"""Where the default is portable, of which predictions are."""
HERE = Toolchain(triton="3.6.0", torch="2.11.0", templates="0" * 16)
ELSEWHERE = Toolchain(triton="3.7.0", torch="2.12.0", templates="0" * 16)
PROBLEM = a_problem(4096)
NEIGHBOUR = Problem(batch=4, heads=16, kv_heads=4, seqlen_q=4000, seqlen_k=4096, dtype=DType.BF16)
"""Another problem of the same bucket."""


@pytest.fixture(autouse=True)
def toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toolchain, "installed", staticmethod(lambda schedule, pass_: HERE))


def found(make: object, problem: Problem, block_m: int, toolchain: Toolchain = HERE, head_dim: int = 128) -> TunedEntry:
    """An entry that is recognised by its block_m."""
    changes = {"problem": problem, "bucket": Bucket.of(problem), "config": a_config(block_m), "toolchain": toolchain}
    return make(head_dim, **changes)  # type: ignore[operator, no-any-return]


def caches(*files: tuple[TunedEntry, ...]) -> list[LoadedCache]:
    return [LoadedCache(Path(f"/caches/{index}.yaml"), Origin.USER, a_cache(*file)) for index, file in enumerate(files)]


def decided(
    *files: tuple[TunedEntry, ...], problem: Problem = PROBLEM, target: Target = SM_90
) -> tuple[DecisionKind, int, str | None]:
    """Kind, block_m and file of the decision."""
    decision = decide(a_spec(), problem, target, caches(*files))
    path = decision.cache_path
    return decision.kind, decision.variant.config.block_m, path and path.stem  # type: ignore[attr-defined]


EXACT = found(measured, PROBLEM, 16)
BUCKET = found(measured, NEIGHBOUR, 32)
NEAR = found(measured, a_problem(8192), 64)
FAR = found(measured, a_problem(1024), 128)
GUESS = found(predicted, PROBLEM, 256)


def test_the_exact_entry_goes_first() -> None:
    assert decided((EXACT, NEAR, FAR)) == (DecisionKind.EXACT, 16, "0")
    assert decided((NEAR,), (BUCKET,), (EXACT,)) == (DecisionKind.EXACT, 16, "2")


def test_then_the_bucket_then_the_nearest_bucket() -> None:
    assert decided((FAR, NEAR, BUCKET)) == (DecisionKind.BUCKET, 32, "0")
    assert decided((FAR,), (NEAR,)) == (DecisionKind.NEAREST, 64, "1")
    assert decided((FAR,)) == (DecisionKind.NEAREST, 128, "0")


def test_without_an_entry_the_default_config_serves() -> None:
    other_spec = found(measured, PROBLEM, 16, head_dim=64)
    decision = decide(a_spec(), PROBLEM, SM_90, caches((other_spec,)))
    assert decision.kind is DecisionKind.DEFAULT
    assert decision.variant == Variant(a_spec(), *default_config(a_spec(), DType.BF16, SM_90.limits))
    assert decision.reason == "nothing usable is tuned for forward_d128_causal on sm_90: the default config"


def test_an_entry_of_a_wider_dtype_does_not_serve() -> None:
    fp32 = Problem(batch=4, heads=16, kv_heads=16, seqlen_q=4096, seqlen_k=4096, dtype=DType.FP32)
    fp16 = Problem(batch=4, heads=16, kv_heads=16, seqlen_q=4096, seqlen_k=4096, dtype=DType.FP16)
    assert decided((EXACT,), problem=fp32)[0] is DecisionKind.DEFAULT
    assert decided((EXACT,), problem=fp16) == (DecisionKind.NEAREST, 16, "0")


def test_measured_goes_before_predicted_however_near() -> None:
    assert decided((GUESS,), (FAR,), target=SM_80) == (DecisionKind.NEAREST, 128, "1")
    assert decided((GUESS,), target=SM_80) == (DecisionKind.EXACT, 256, "0")


def test_among_equals_the_first_cache_wins() -> None:
    assert decided((found(measured, PROBLEM, 64),), (EXACT,)) == (DecisionKind.EXACT, 64, "0")


def test_an_entry_of_another_toolchain_is_not_exact_but_serves() -> None:
    old = found(measured, PROBLEM, 64, ELSEWHERE)
    assert decided((old,)) == (DecisionKind.BUCKET, 64, "0")
    assert decided((old,), (BUCKET,)) == (DecisionKind.BUCKET, 32, "1")
    reason = decide(a_spec(), PROBLEM, SM_90, caches((old,))).reason
    assert reason.endswith("(found with triton 3.7.0, not 3.6.0)")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (EXACT, "measured on this very problem, 1.25 ms, 1.20 x the default"),
        (BUCKET, "measured for its bucket bfloat16_bh64_q4096_k4096, 1.25 ms, 1.20 x the default"),
        (NEAR, "measured for the nearest bucket bfloat16_bh64_q8192_k8192, 2 steps away, 1.25 ms, 1.20 x the default"),
        (GUESS, "predicted on this very problem, 1.20 x the default"),
    ],
)
def test_the_reason_is_in_words(entry: TunedEntry, reason: str) -> None:
    decision = decide(a_spec(), PROBLEM, SM_80, caches((entry,)))
    assert decision == Decision(entry.variant, decision.kind, reason, entry, Path("/caches/0.yaml"))


def test_what_failed_before_is_passed_over() -> None:
    files = caches((EXACT, NEAR, FAR))
    assert decide(a_spec(), PROBLEM, SM_90, files, {EXACT.variant}).entry == NEAR
    every = {EXACT.variant, NEAR.variant, FAR.variant}
    assert decide(a_spec(), PROBLEM, SM_90, files, every).kind is DecisionKind.DEFAULT


def test_the_steps_of_a_look_up_hold_the_best_of_each_kind() -> None:
    best = best_by_kind(matches(a_spec(), PROBLEM, caches((FAR, NEAR), (EXACT,), (GUESS,))))
    assert {step: match.entry for step, match in best.items()} == {
        (Source.MEASURED, DecisionKind.EXACT): EXACT,
        (Source.MEASURED, DecisionKind.NEAREST): NEAR,
        (Source.PREDICTED, DecisionKind.EXACT): GUESS,
    }


@pytest.mark.parametrize("dtype", DType)
def test_smaller_defaults_start_at_the_default_and_ask_for_ever_less(dtype: DType) -> None:
    variants = list(smaller_defaults(a_spec(256), dtype, SM_90.limits))
    needs = [v.definition.shared_memory_estimate(v.spec, v.config, dtype, SM_90.limits) for v in variants]
    assert variants[0] == Variant(a_spec(256), *default_config(a_spec(256), dtype, SM_90.limits))
    assert len(set(variants)) == len(variants) > 1
    assert needs == sorted(needs, reverse=True)


def test_smaller_defaults_end_where_there_is_none_smaller() -> None:
    smallest = list(smaller_defaults(a_spec(), DType.BF16, SM_90.limits))[-1]
    assert Variant(a_spec(), *default_config(a_spec(), DType.BF16, Limits("sm_90", 1024))) == smallest


def test_deterministic_calls_pass_over_what_does_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Variant, "is_deterministic", property(lambda variant: getattr(variant.config, "block_m", 64) > 16)
    )
    files = caches((EXACT,), (BUCKET,))
    assert decide(a_spec(), PROBLEM, SM_90, files).entry == EXACT
    assert decide(a_spec(), PROBLEM, SM_90, files, deterministic=True).entry == BUCKET
    alone = decide(a_spec(), PROBLEM, SM_90, caches((EXACT,)), deterministic=True)
    assert alone.kind is DecisionKind.DEFAULT


def test_of_two_schedules_entries_the_newer_decides() -> None:
    definition = schedule_of(Schedule.HOPPER, Pass.FORWARD)
    config = definition.default(a_spec(), DType.BF16, SM_90.limits)
    for hopper_created, portable_created in ((EARLY, LATE), (LATE, EARLY)):
        hopper = structs.replace(EXACT, schedule=Schedule.HOPPER, config=config, created=hopper_created)
        portable = structs.replace(EXACT, created=portable_created)
        newer = max(hopper, portable, key=lambda entry: entry.created)
        for order in ((hopper, portable), (portable, hopper)):
            files = caches(order)
            assert decide(a_spec(), PROBLEM, SM_90, files).entry == newer
            assert decide(a_spec(), PROBLEM, SM_90, files, refused=[Schedule.HOPPER]).entry == portable


def test_a_schedule_that_was_beaten_does_not_come_back_when_the_winners_templates_change() -> None:
    definition = schedule_of(Schedule.HOPPER, Pass.FORWARD)
    config = definition.default(a_spec(), DType.BF16, SM_90.limits)
    edited = structs.replace(HERE, templates="1" * 16)
    hopper = structs.replace(EXACT, schedule=Schedule.HOPPER, config=config, created=LATE, toolchain=edited)
    decision = decide(a_spec(), PROBLEM, SM_90, caches((EXACT, hopper)))
    assert (decision.entry, decision.kind) == (hopper, DecisionKind.BUCKET)
    assert decide(a_spec(), PROBLEM, SM_90, caches((EXACT, hopper)), refused=[Schedule.HOPPER]).entry == EXACT
    # With another triton the two were never compared.
    elsewhere = structs.replace(hopper, toolchain=ELSEWHERE)
    assert decide(a_spec(), PROBLEM, SM_90, caches((EXACT, elsewhere))).entry == EXACT


@pytest.fixture
def hopper_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "preferred_schedule", lambda *_: Schedule.HOPPER)


@pytest.mark.usefixtures("hopper_preferred")
def test_a_preferred_schedule_is_the_default_where_it_can_and_portable_comes_next() -> None:
    spec = a_spec()
    assert decide(spec, PROBLEM, SM_90, []).variant.schedule is Schedule.HOPPER
    assert decide(spec, PROBLEM, SM_90, [], refused=[Schedule.HOPPER]).variant.schedule is Schedule.PORTABLE
    assert decide(spec, PROBLEM, Target.for_arch("sm_80"), []).variant.schedule is Schedule.PORTABLE
    first, second, *others = smaller_defaults(spec, DType.BF16, SM_90.limits)
    assert (first.schedule, second.schedule) == (Schedule.HOPPER, Schedule.PORTABLE)
    assert others
    assert {variant.schedule for variant in others} == {Schedule.PORTABLE}


@pytest.mark.usefixtures("hopper_preferred")
def test_a_prediction_says_nothing_against_the_default_of_another_schedule() -> None:
    files = caches((GUESS,))
    assert decide(a_spec(), PROBLEM, SM_90, files).variant.schedule is Schedule.HOPPER
    assert decide(a_spec(), PROBLEM, SM_90, files, refused=[Schedule.HOPPER]).entry == GUESS
    assert decide(a_spec(), PROBLEM, SM_90, caches((GUESS, FAR))).entry == FAR, "a measured one does"


TINY = Problem(batch=1, heads=2, kv_heads=2, seqlen_q=64, seqlen_k=64, dtype=DType.BF16)


def a_hopper_entry(problem: Problem) -> TunedEntry:
    config = schedule_of(Schedule.HOPPER, Pass.FORWARD).default(a_spec(), DType.BF16, SM_90.limits)
    return measured(
        128, problem=problem, bucket=Bucket.of(problem), schedule=Schedule.HOPPER, config=config, toolchain=HERE
    )


def test_what_is_slow_to_launch_is_not_for_tiny_problems() -> None:
    assert decide(a_spec(), PROBLEM, SM_90, []).variant.schedule is Schedule.HOPPER
    assert decide(a_spec(), TINY, SM_90, []).variant.schedule is Schedule.PORTABLE
    both = caches((a_hopper_entry(PROBLEM), FAR))
    assert decide(a_spec(), NEIGHBOUR, SM_90, both).variant.schedule is Schedule.HOPPER
    assert decide(a_spec(), TINY, SM_90, both).entry is FAR


def test_unless_that_very_problem_was_tuned() -> None:
    assert decide(a_spec(), TINY, SM_90, caches((a_hopper_entry(TINY),))).kind is DecisionKind.EXACT

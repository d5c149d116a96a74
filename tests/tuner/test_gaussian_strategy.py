"""What a search of several schedules tries, and when it has tried enough."""

from collections.abc import Callable, Mapping

import pytest

from attnforge.codegen import AttentionSpec, DType, Limits, Pass, Schedule, Variant, fields_of
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner import gaussian_strategy
from attnforge.tuner.gaussian_strategy import FAIR_TRIALS, GaussianStrategy
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.offer import offer
from attnforge.tuner.ranking import RANKED_TRIALS, one_field_away, predictors, ranked
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.task import self_attention
from tests.tuner.fake_device import TARGET

REFUSED = Failure(FailureKind.COMPILE, "refused")
PROBLEM = self_attention(128, 4096, DType.BF16)
Ms = Callable[[Variant], float | None]


def spaces_of(head_dim: int = 128) -> Mapping[Schedule, SearchSpace]:
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim, causal=False)
    return offer(spec, DType.BF16, Limits("sm_90", 232448)).spaces


def flat(**of_schedule: float) -> Ms:
    """Configs of a schedule are alike but for 1 %, its default is the best."""

    def ms(variant: Variant) -> float:
        default = variant.config == variant.definition.default(variant.spec, DType.BF16, TARGET.limits)
        return of_schedule[variant.schedule] * (1.0 if default else 1.01)

    return ms


def searched(spaces: Mapping[Schedule, SearchSpace], ms: Ms, at_once: int = 1) -> list[Variant]:
    """What is tried, the defaults first; results come when ``at_once`` are under way."""
    strategy = GaussianStrategy(spaces, 0, predictors(spaces, PROBLEM, TARGET))
    known, first = list[Variant](), [space.variant(space.default) for space in spaces.values()]
    told = 0
    while True:
        while len(known) - told < at_once:
            variant = first.pop(0) if first else strategy.propose(known)
            if variant is None:
                break
            known.append(variant)
        if told == len(known):
            return known
        took = ms(known[told])
        strategy.tell(known[told], REFUSED if took is None else Measurement({"forward": took}, runs=1))
        told += 1


def of(schedule: Schedule, variants: list[Variant]) -> int:
    return sum(variant.schedule is schedule for variant in variants)


@pytest.mark.parametrize("faster", Schedule)
def test_a_schedule_that_is_far_behind_is_left_alone(faster: Schedule) -> None:
    slower = next(each for each in Schedule if each is not faster)
    tried = searched(spaces_of(), flat(**{faster: 1.0, slower: 2.0}))
    assert of(slower, tried) <= FAIR_TRIALS + 1
    assert of(faster, tried) > of(slower, tried)


@pytest.mark.parametrize("at_once", [1, 5])
def test_it_ends_when_nothing_promises_to_be_faster(at_once: int) -> None:
    spaces = spaces_of(64)
    tried = searched(spaces, flat(portable=1.0, hopper=1.02), at_once)
    assert len(tried) == len(set(tried)) < 0.25 * sum(len(space.configs) for space in spaces.values())


def test_without_that_rule_it_would_try_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian_strategy, "LEAST_PROMISE", -1.0)
    spaces = {Schedule.HOPPER: spaces_of()[Schedule.HOPPER]}
    assert len(searched(spaces, flat(hopper=1.0))) == len(spaces[Schedule.HOPPER].configs)


def test_it_finds_a_best_that_is_several_fields_from_where_it_starts() -> None:
    spaces = spaces_of(64)
    hopper = spaces[Schedule.HOPPER]
    goal = max(hopper.configs, key=lambda config: sum(fields_of(config)[k] != v for k, v in default_of(hopper).items()))

    def ms(variant: Variant) -> float:
        if variant.schedule is not Schedule.HOPPER:
            return 3.0
        return 1.1 ** sum(fields_of(variant.config)[field] != value for field, value in fields_of(goal).items())

    tried = searched(spaces, ms)
    assert hopper.variant(goal) in tried
    assert len(tried) < 0.5 * len(hopper.configs)


def default_of(space: SearchSpace) -> Mapping[str, object]:
    return fields_of(space.default)


def test_a_schedule_starts_with_what_the_static_model_ranks_or_with_what_is_beside_its_default() -> None:
    spaces = spaces_of()
    costs = predictors(spaces, PROBLEM, TARGET)
    expected = {
        Schedule.PORTABLE: list(ranked(spaces[Schedule.PORTABLE], costs[Schedule.PORTABLE]))[:FAIR_TRIALS],
        Schedule.HOPPER: one_field_away(spaces[Schedule.HOPPER], 0)[:FAIR_TRIALS],
    }
    for schedule, space in spaces.items():
        strategy, known = GaussianStrategy({schedule: space}, 0, costs), [space.variant(space.default)]
        while len(known) < FAIR_TRIALS:
            variant = strategy.propose(known)
            assert variant is not None
            known.append(variant)
        found = [variant.config for variant in known[1:]]
        assert found == [each for each in expected[schedule] if each != space.default][: len(found)]


def test_a_schedule_of_which_nothing_runs_is_given_up_where_another_runs() -> None:
    def ms(variant: Variant) -> float | None:
        return None if variant.schedule is Schedule.HOPPER else 1.0

    tried = searched(spaces_of(), ms)
    assert of(Schedule.HOPPER, tried) == RANKED_TRIALS


def test_what_is_under_way_is_not_proposed_again_and_spreads_the_proposals() -> None:
    spaces = {Schedule.HOPPER: spaces_of(64)[Schedule.HOPPER]}
    space = spaces[Schedule.HOPPER]
    strategy = GaussianStrategy(spaces, 0)
    known = list(space.variants)[:20]
    for variant in known:
        took = 1.1 ** sum(fields_of(variant.config)[field] != value for field, value in default_of(space).items())
        strategy.tell(variant, Measurement({"forward": took}, runs=1))
    pending = []
    for _ in range(4):
        variant = strategy.propose([*known, *pending])
        assert variant is not None
        pending.append(variant)
    assert len(set(pending) - set(known)) == 4

import pytest

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, fields_of, schedule_of
from attnforge.tuner.ranking import one_field_away, predictor, predictors, ranked
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.task import self_attention
from tests.tuner.fake_device import TARGET


def space_of(pass_: Pass, head_dim: int, schedule: Schedule = Schedule.PORTABLE) -> SearchSpace:
    spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=True)
    return SearchSpace(spec, schedule_of(schedule, pass_), DType.BF16, TARGET.limits)


@pytest.mark.parametrize("pass_", Pass)
@pytest.mark.parametrize("head_dim", [64, 80, 256])
def test_ranked_configs_are_admitted_different_and_in_order(pass_: Pass, head_dim: int) -> None:
    space = space_of(pass_, head_dim)
    cost = predictor(space, self_attention(head_dim, 4096, DType.BF16), TARGET)
    assert cost is not None
    found = list(ranked(space, cost))
    assert len(found) == len(set(found)) >= 8
    assert set(found) <= set(space.configs)
    totals = [sum(cost(config).values()) for config in found]
    assert totals == sorted(totals)
    assert totals[0] == min(sum(cost(config).values()) for config in space.configs)


def test_schedules_that_the_model_does_not_know_have_no_ranking() -> None:
    problem = self_attention(128, 4096, DType.BF16)
    spaces = {schedule: space_of(Pass.FORWARD, 128, schedule) for schedule in (Schedule.PORTABLE, Schedule.HOPPER)}
    assert list(predictors(spaces, problem, TARGET)) == [Schedule.PORTABLE]


@pytest.mark.parametrize("pass_", Pass)
def test_beside_the_default_every_other_choice_of_every_field_is_tried_once_at_least(pass_: Pass) -> None:
    space = space_of(pass_, 64, Schedule.HOPPER)
    found = one_field_away(space, seed=0)
    assert set(found) <= set(space.configs)
    default = fields_of(space.default)
    for field, choices in space.choices.items():
        possible = {getattr(config, field) for config in space.configs} & set(choices)
        assert {getattr(config, field) for config in [space.default, *found]} == possible
    distances = [sum(v != default[f] for f, v in fields_of(config).items()) for config in found]
    assert distances == sorted(distances), "what differs in more fields says less of each"
    assert distances.count(1) > len(found) / 2, "constraints tie some fields together"


def test_between_fields_of_equally_many_choices_only_the_seed_decides_which_is_tried_first() -> None:
    space = space_of(Pass.BACKWARD, 64, Schedule.HOPPER)
    default = fields_of(space.default)
    first = {one_field_away(space, seed)[0] for seed in range(20)}
    changed = [{f for f, v in fields_of(config).items() if v != default[f]} for config in first]
    assert all(len(fields) == 1 for fields in changed)
    assert len(set.union(*changed)) > 1
    assert one_field_away(space, 3) == one_field_away(space, 3)

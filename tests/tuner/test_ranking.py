from itertools import islice

import pytest

from attnforge.codegen import AttentionSpec, Config, DType, Pass, Schedule, schedule_of
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.ranking import RankedStart, predictor, predictors, ranked
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.task import self_attention
from tests.tuner.fake_device import TARGET

FAILURE = Failure(FailureKind.COMPILE, "refused")


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


class Listener:
    def __init__(self) -> None:
        self.heard: list[Config] = []

    def propose(self, known: object) -> None:
        return None

    def tell(self, config: Config, outcome: Measurement | Failure) -> None:
        self.heard.append(config)


def test_after_so_many_proposals_the_other_strategy_proposes_and_it_hears_everything() -> None:
    space = space_of(Pass.FORWARD, 128)
    first, second, third = islice(space.configs, 3)
    then = Listener()
    start = RankedStart(iter([first, second, third]), then, proposals=1)
    start.tell(third, FAILURE)
    assert start.propose({first}) == second, "what is known is passed over"
    start.tell(second, FAILURE)
    assert start.propose({first, second}) is None
    assert then.heard == [third, second]


def test_a_ranking_that_ends_early_leaves_the_rest_to_the_other_strategy() -> None:
    assert RankedStart(iter([]), Listener()).propose(()) is None

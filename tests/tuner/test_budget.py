import pytest

from attnforge.tuner.budget import COMPARISON_SHARE, EAGERNESS, Budget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_after_another_shares_by_weight() -> None:
    clock = Clock()
    budget = Budget(90.0, [1.0, 2.0], at_once=1, clock=clock)
    assert budget.start(1.0) == pytest.approx(100 + EAGERNESS * 30 * (1 - COMPARISON_SHARE))
    budget.finish(1.0)
    clock.now = 110.0  # what it left, the next has
    assert budget.start(2.0) == pytest.approx(110 + 80 * (1 - COMPARISON_SHARE))


@pytest.mark.parametrize("at_once", [1, 3])
def test_all_of_them_end_in_time(at_once: int) -> None:
    """Specs that search as long as they may, and then compare for the share that is kept for it."""
    clock = Clock()
    weights = [1.0, 2.0] * 9
    budget = Budget(100.0, weights, at_once, clock)
    ends: list[tuple[float, float]] = []
    for weight in weights:
        if len(ends) == at_once:
            ends.sort()
            clock.now, done = ends.pop(0)
            budget.finish(done)
        search_ends = budget.start(weight)
        assert search_ends > clock.now
        ends.append((clock.now + (search_ends - clock.now) / (1 - COMPARISON_SHARE), weight))
    assert max(ends)[0] <= 201.0


def test_a_spent_budget_leaves_no_time() -> None:
    clock = Clock()
    budget = Budget(10.0, [1.0], 1, clock)
    clock.now = 500.0
    assert budget.has_passed(budget.start(1.0))


def test_it_is_spent_a_little_after_its_end_but_never_before_the_first_start() -> None:
    clock = Clock()
    budget = Budget(10.0, [1.0, 1.0], 1, clock)
    clock.now = 500.0
    assert not budget.is_spent
    budget = Budget(10.0, [1.0, 1.0], 1, clock)
    budget.start(1.0)
    clock.now = 510.5
    assert not budget.is_spent, "the last spec may begin late"
    clock.now = 511.0
    assert budget.is_spent

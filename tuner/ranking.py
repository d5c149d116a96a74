"""Which configs a search tries first: those that the static model takes for the fastest, before anything is known."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from itertools import product
from operator import itemgetter
from typing import TYPE_CHECKING

from attnforge.codegen import Config, Schedule
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import Failure
from attnforge.problem import Problem
from attnforge.target import Target
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.static_model import predict

if TYPE_CHECKING:
    from attnforge.tuner.strategy import Strategy

RANKED_TRIALS = 8
"""Of a search. After so many the best of the recorded sweep is found to within 1 %, in the mean over its problems; what
the model does not see is up to what learns from measurements."""

Predict = Callable[[Config], Mapping[str, float]]
"""The cost of each kernel of a config, in any unit: less is better."""


class RankedStart:
    """A strategy whose first proposals are a ranking's."""

    def __init__(self, ranked: Iterator[Config], then: Strategy, proposals: int = RANKED_TRIALS) -> None:
        """``then`` hears of every outcome, and proposes when ``ranked`` has been asked ``proposals`` times."""
        self._ranked = ranked
        self._left = proposals
        self._then = then

    def propose(self, known: Container[Config]) -> Config | None:
        """The next of the ranking that is not among ``known``, or what the other strategy says."""
        while self._left > 0:
            config = next(self._ranked, None)
            if config is None:
                self._left = 0
            elif config not in known:
                self._left -= 1
                return config
        return self._then.propose(known)

    def tell(self, config: Config, outcome: Measurement | Failure) -> None:
        """Passed on."""
        self._then.tell(config, outcome)


def predictor(space: SearchSpace, problem: Problem, target: Target) -> Predict | None:
    """What the static model says of a space's configs on a problem; None for schedules that it does not know."""
    if space.definition.schedule is not Schedule.PORTABLE:
        return None
    return lambda config: predict(space.spec, config, problem, target)


def ranked(space: SearchSpace, cost: Predict) -> Iterator[Config]:
    """Configs of a space, what promises most first; not all of them.

    The kernels of a backward are launched and timed apart, and the tuner puts the best parts together at the end: so
    the first config joins each kernel's most promising fields, the second one each kernel's second, and so on.
    """
    costs: dict[Config, float] = {}
    for shared in product(*(space.choices[field] for field in space.shared_fields)):
        fields = dict(zip(space.shared_fields, shared, strict=True))
        for config in _joined(space, fields, cost):
            if space.admits(config):
                costs.setdefault(config, sum(cost(config).values()))
    yield from sorted(costs, key=costs.__getitem__)


def _joined(space: SearchSpace, shared: dict[str, Choice], cost: Predict) -> Iterator[Config]:
    """One config for each place of the kernels' rankings; a kernel of fewer choices repeats its best.

    A choice that is excluded even beside the first choices of all other kernels is excluded everywhere.
    """
    first = {field: values[0] for field, values in space.choices.items()}
    rankings = []
    for kernel, names in space.kernels.items():
        choices = [dict(zip(names, v, strict=True)) for v in product(*(space.choices[name] for name in names))]
        beside_first = [(space.config({**first, **shared, **fields}), fields) for fields in choices]
        admitted = [(cost(config)[kernel], fields) for config, fields in beside_first if space.admits(config)]
        if not admitted:
            return
        rankings.append([fields for _, fields in sorted(admitted, key=itemgetter(0))])
    for place in range(max(map(len, rankings))):
        fields = dict(shared)
        for of_kernel in rankings:
            fields |= of_kernel[place if place < len(of_kernel) else 0]
        yield space.config(fields)

"""Which configs a search tries first, before anything is known: those that the static model takes for the fastest, or
where it knows nothing, those beside the default."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from attnforge.codegen import Config, Schedule, fields_of
from attnforge.codegen.schedules.base import Choice
from attnforge.problem import Problem
from attnforge.target import Target
from attnforge.tuner.search_space import SearchSpace, values_of
from attnforge.tuner.static_model import predict

RANKED_TRIALS = 8
"""Of a search. After so many the best of the recorded sweep is found to within 1 %, in the mean over its problems; what
the model does not see is up to what learns from measurements."""

Values = tuple[Choice, ...]
Predict = Callable[[Config], Mapping[str, float]]
"""The cost of each kernel of a config, in any unit: less is better."""


def one_field_away(space: SearchSpace, seed: int) -> list[Config]:
    """For every other choice of a field the config that differs least from the default.

    For schedules that no static model knows. The defaults of hopper are near their best but for a field or two, and a
    Gaussian process that knows what each choice does alone guesses well what they do together. So what constraints
    force to differ in more fields comes last; before that, fields of most choices come first, for one that has many is
    where the best differs most between problems. Between equals nothing decides but the seed: in the order of
    declaration, the one field that matters to a schedule might always be the last.
    """
    default = fields_of(space.default)

    def distance(config: Config) -> int:
        return sum(value != default[field] for field, value in fields_of(config).items())

    fields = sorted(space.choices)
    random.Random(seed).shuffle(fields)
    fields.sort(key=lambda field: -len(space.choices[field]))
    found = []
    for field in fields:
        for choice in space.choices[field]:
            having = [config for config in space.configs if getattr(config, field) == choice]
            if choice != default[field] and having:
                found.append(min(having, key=distance))
    return sorted(found, key=distance)


def predictor(space: SearchSpace, problem: Problem, target: Target) -> Predict | None:
    """What the static model says of a space's configs on a problem; None for schedules that it does not know."""
    if space.definition.schedule is not Schedule.PORTABLE:
        return None
    return lambda config: predict(space.spec, config, problem, target)


def predictors(spaces: Mapping[Schedule, SearchSpace], problem: Problem, target: Target) -> dict[Schedule, Predict]:
    """A predictor() for each schedule that the static model knows."""
    found = {schedule: predictor(space, problem, target) for schedule, space in spaces.items()}
    return {schedule: predict for schedule, predict in found.items() if predict is not None}


def ranked(space: SearchSpace, cost: Predict) -> Iterator[Config]:
    """Configs of a space, what promises most first; not all of them.

    The kernels of a backward are launched and timed apart, and the tuner puts the best parts together at the end: so
    the first config joins each kernel's most promising fields, the second one each kernel's second, and so on.
    """
    found: dict[Config, float] = {}
    for shared, kernels in _costs(space, cost).items():
        for config in _joined(space, shared, kernels):
            if space.admits(config):
                found.setdefault(config, sum(cost(config).values()))
    yield from sorted(found, key=found.__getitem__)


def _costs(space: SearchSpace, cost: Predict) -> dict[Values, dict[str, dict[Values, float]]]:
    """What each kernel costs, by the values of the shared fields, the kernel, and the values of its own fields."""
    found: dict[Values, dict[str, dict[Values, float]]] = {}
    for config in space.configs:
        kernels = found.setdefault(values_of(config, space.shared_fields), {kernel: {} for kernel in space.kernels})
        for kernel, fields in space.kernels.items():
            values = values_of(config, fields)
            if values not in kernels[kernel]:
                kernels[kernel][values] = cost(config)[kernel]
    return found


def _joined(space: SearchSpace, shared: Values, kernels: dict[str, dict[Values, float]]) -> Iterator[Config]:
    """One config for each place of the kernels' rankings; a kernel of fewer choices repeats its best."""
    rankings = {kernel: sorted(costs, key=costs.__getitem__) for kernel, costs in kernels.items()}
    for place in range(max(map(len, rankings.values()))):
        fields = dict(zip(space.shared_fields, shared, strict=True))
        for kernel, ranking in rankings.items():
            values = ranking[place] if place < len(ranking) else ranking[0]
            fields |= dict(zip(space.kernels[kernel], values, strict=True))
        yield space.config(fields)

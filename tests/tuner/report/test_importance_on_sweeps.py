"""Draws from the H200's sweeps: whether what stands out in a few configs decides in the whole sweep, too."""

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from attnforge.codegen import Config
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.report.importance import MIN_MEASURED, Importance, Share, importances
from attnforge.tuner.report.recorded_studies import RecordedStudy
from tests.tuner.recorded import RecordedSpace
from tests.tuner.replay_tune import Recorded, recorded_specs

DRAWS = 6
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def studies_of(spec: Recorded, drawn: Callable[[RecordedSpace], Sequence[Config]]) -> list[RecordedStudy]:
    return [
        RecordedStudy(
            spec=next(iter(spaces.values())).spec,
            problem=problem,
            triton="3.6.0",
            templates={},
            outcomes={space.variant(c): space.outcome(c) for space in spaces.values() for c in drawn(space)},
            began=NOW,
            ended=NOW,
        )
        for problem, spaces in spec.items()
    ]


def that_ran(space: RecordedSpace) -> list[Config]:
    return [config for config in space.configs if isinstance(space.outcome(config), Measurement)]


def draws(configs: int) -> Iterator[tuple[Importance, dict[str, float]]]:
    """What so many configs of a spec and schedule say, and the shares of the whole sweep."""
    for spec in recorded_specs():
        whole = {
            (found.name, found.schedule): {share.field: share.share for share in found.shares}
            for found in importances(studies_of(spec, that_ran)).found
        }
        for seed in range(DRAWS):

            def some(space: RecordedSpace, seed: int = seed) -> list[Config]:
                ran = that_ran(space)
                return random.Random(seed).sample(ran, configs) if len(ran) >= max(16, configs + 1) else []

            for found in importances(studies_of(spec, some)).found:
                yield found, whole[found.name, found.schedule]


def decides(first: Share, whole: dict[str, float]) -> bool:
    """Whether a field explains at least half as much of the whole sweep as the one that explains most."""
    return bool(whole) and whole.get(first.field, 0.0) >= 0.5 * max(whole.values())


def share_that_decides(firsts: Sequence[tuple[Share, dict[str, float]]], stands_out: bool) -> float:
    found = [decides(first, whole) for first, whole in firsts if first.stands_out is stands_out]
    return sum(found) / len(found)


def test_what_stands_out_of_few_configs_decides_and_what_does_not_need_not() -> None:
    firsts = [(found.shares[0], whole) for found, whole in draws(MIN_MEASURED) if found.shares]
    assert sum(first.stands_out for first, _ in firsts) > 0.15 * len(firsts), "thrice what chance has"
    assert share_that_decides(firsts, stands_out=True) > 0.8
    assert share_that_decides(firsts, stands_out=False) < 0.7

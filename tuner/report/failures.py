"""What failed in the studies, by kind, with examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnforge.codegen import Variant
from attnforge.compilation import Failure, FailureKind
from attnforge.problem import Problem
from attnforge.tuner.report.trials import FailedOn, Trial

EXAMPLES = 3
MESSAGE_CHARACTERS = 4000
"""Of an example's message: compilers write pages."""


@dataclass(frozen=True, slots=True)
class FailureExample:
    """A config that failed, and what was said."""

    variant: Variant
    problem: Problem
    first_line: str
    rest: str


@dataclass(frozen=True, slots=True)
class FailuresOfKind:
    """The failures of one kind."""

    kind: FailureKind
    count: int
    """Of the trials."""
    examples: tuple[FailureExample, ...]
    """A few, of different first lines."""


def failures_by_kind(trials: Iterable[Trial]) -> tuple[FailuresOfKind, ...]:
    """The trials that failed, the most frequent kind first."""
    found: dict[FailureKind, list[tuple[Variant, FailedOn]]] = {}
    for trial in trials:
        if trial.failed is not None:
            found.setdefault(trial.failed.failure.kind, []).append((trial.variant, trial.failed))
    kinds = [FailuresOfKind(kind, len(failed), _examples(failed)) for kind, failed in found.items()]
    return tuple(sorted(kinds, key=lambda each: -each.count))


def _examples(trials: Iterable[tuple[Variant, FailedOn]]) -> tuple[FailureExample, ...]:
    different: dict[str, FailureExample] = {}
    for variant, failed in trials:
        example = _example(variant, failed.problem, failed.failure)
        different.setdefault(example.first_line, example)
    return tuple(different.values())[:EXAMPLES]


def _example(variant: Variant, problem: Problem, failure: Failure) -> FailureExample:
    first, _, rest = failure.message.strip().partition("\n")
    if len(rest) > MESSAGE_CHARACTERS:
        rest = f"{rest[:MESSAGE_CHARACTERS]}\n… ({len(rest) - MESSAGE_CHARACTERS} more characters)"
    return FailureExample(variant, problem, first or "it said nothing", rest)

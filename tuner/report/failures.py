"""What failed in the studies, by kind, with examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnforge.codegen import Variant
from attnforge.compilation import Failure, FailureKind
from attnforge.problem import Problem
from attnforge.tuner.report.recorded_studies import RecordedStudy

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
    examples: tuple[FailureExample, ...]
    """A few, of different first lines."""


def failures_by_kind(studies: Iterable[RecordedStudy]) -> tuple[FailuresOfKind, ...]:
    """All failures of the studies, the most frequent kind first."""
    found: dict[FailureKind, list[tuple[Variant, Problem, Failure]]] = {}
    for study in studies:
        for variant, failure in study.failures.items():
            found.setdefault(failure.kind, []).append((variant, study.problem, failure))
    kinds = [FailuresOfKind(kind, len(failed), _examples(failed)) for kind, failed in found.items()]
    return tuple(sorted(kinds, key=lambda each: -each.count))


def _examples(failed: list[tuple[Variant, Problem, Failure]]) -> tuple[FailureExample, ...]:
    different: dict[str, FailureExample] = {}
    for variant, problem, failure in failed:
        example = _example(variant, problem, failure)
        different.setdefault(example.first_line, example)
    return tuple(different.values())[:EXAMPLES]


def _example(variant: Variant, problem: Problem, failure: Failure) -> FailureExample:
    first, _, rest = failure.message.strip().partition("\n")
    if len(rest) > MESSAGE_CHARACTERS:
        rest = f"{rest[:MESSAGE_CHARACTERS]}\n… ({len(rest) - MESSAGE_CHARACTERS} more characters)"
    return FailureExample(variant, problem, first or "it said nothing", rest)

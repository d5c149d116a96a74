"""What a tune brought, for the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from attnforge.cache.schema import TunedEntry
from attnforge.codegen import AttentionSpec, Variant
from attnforge.compilation import Failure
from attnforge.problem import Problem


class Verdict(StrEnum):
    """What became of a spec on a problem."""

    CHOSEN = "chosen"
    """An entry was written: a faster config, or the word that the one in office is best."""
    KEPT = "kept"
    """An earlier run had finished it; nothing was measured again."""
    NOISY = "noisy"
    """The GPU was disturbed while configs were compared: the entry in office stays."""
    NOTHING_VALID = "nothing valid"
    """No config ran, or none was right: nothing was written, and an older entry stays."""
    NOT_COMPARED = "not compared"
    """Configs ran, but their comparison failed: nothing was written, and an older entry stays."""


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """A spec on one problem."""

    problem: Problem
    verdict: Verdict
    entry: TunedEntry | None
    """What the tuned cache holds now; None when nothing is valid, or nothing was compared."""
    reason: str = ""
    """Why there is none."""
    noise: tuple[str, ...] = ()
    """What disturbed the comparison, in words."""


@dataclass(frozen=True, slots=True)
class SpecResult:
    """A spec on all of its problems."""

    spec: AttentionSpec
    problems: tuple[ProblemResult, ...]
    trials: int
    """Configs that were tried, those of earlier runs included."""
    failures: Mapping[Variant, Failure] = field(default_factory=dict)
    """The configs among them that failed."""
    ended_early: bool = False
    """Whether the search had configs left to propose when its time was over."""

    @property
    def entries(self) -> list[TunedEntry]:
        """What was chosen anew."""
        return [r.entry for r in self.problems if r.verdict is Verdict.CHOSEN and r.entry is not None]

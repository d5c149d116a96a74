"""Problem -> decision: which variant runs, and why.

Among the entries of the spec on the target, measured ones go before predicted ones whatever their bucket: a
measurement next door says more than the static model at home. Within a source an exact entry goes before its bucket's,
and that before the nearest bucket's; among equals the caches' order decides. Of two schedules' entries for a bucket the
newer alone counts, for it was compared with what was there, unless that comparison was noisy and the older's was not;
the other serves where its schedule cannot.
Without an entry it is the default config. Where a problem is so small that launching is what takes the time, schedules
whose launches cost more are passed over, unless that very problem was tuned. A prediction is against the default of its
own schedule: where another schedule's is the default it says nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from attnforge.cache.schema import Source, TunedEntry
from attnforge.cache.store import LoadedCache
from attnforge.codegen import AttentionSpec, DType, Limits, Schedule, Variant, default_configs
from attnforge.operations import operations
from attnforge.problem import Bucket, Problem
from attnforge.target import Target

LEAST_OPERATIONS = {Schedule.HOPPER: 4e9}
"""Floating-point operations of a problem below which a schedule's launches cost the host more than its kernels save.

On H200 machines a held launch of hopper's forward, which encodes four TMA descriptors, took the host 13.3 to 14.5 us
(SDPA's call 17) and portable's 6.2 (SDPA's 12); portable's kernel does 4e9 operations in 10 us. Its backward encodes 7
to 25: what that takes was not measured.
"""


class DecisionKind(StrEnum):
    """How close the chosen entry was found on, best first."""

    EXACT = "exact"
    """On this very problem, with this toolchain."""
    BUCKET = "bucket"
    """In the problem's bucket."""
    NEAREST = "nearest"
    """In the bucket that is least far from the problem's."""
    DEFAULT = "default"
    """There is none: the schedule's default config for the target."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the dispatcher picked for a problem, and why."""

    variant: Variant
    kind: DecisionKind
    reason: str
    """In words, for the debug log and for ``attnforge explain``."""
    entry: TunedEntry | None = None
    cache_path: Path | None = None
    """The tuned cache that holds the entry."""


@dataclass(frozen=True, slots=True)
class Match:
    """A tuned entry that could serve a problem."""

    entry: TunedEntry
    cache_path: Path
    kind: DecisionKind
    distance: float
    """Of its bucket from the problem's, as ``Bucket.distance`` counts."""
    differences: tuple[str, ...]
    """Of its toolchain from the installed one, in words."""

    def to_decision(self) -> Decision:
        """The decision for it."""
        return Decision(self.entry.variant, self.kind, self._reason(), self.entry, self.cache_path)

    def _reason(self) -> str:
        found = {
            DecisionKind.EXACT: "on this very problem",
            DecisionKind.BUCKET: f"for its bucket {self.entry.bucket.name}",
            DecisionKind.NEAREST: f"for the nearest bucket {self.entry.bucket.name}, {self.distance:g} steps away",
        }[self.kind]
        speed = "" if self.entry.median_ms is None else f", {self.entry.median_ms:.4g} ms"
        gain = "" if self.entry.gain is None else f", {self.entry.gain:.2f} x the default"
        toolchain = f" (found with {'; '.join(self.differences)})" if self.differences else ""
        noise = f" (noisy: {', '.join(self.entry.noise)})" if self.entry.noise else ""
        return f"{self.entry.source} {found}{speed}{gain}{noise}{toolchain}"


def decide(
    spec: AttentionSpec,
    problem: Problem,
    target: Target,
    caches: Sequence[LoadedCache],
    excluded: Container[Variant] = frozenset(),
    refused: Collection[Schedule] = (),
    *,
    deterministic: bool = False,
) -> Decision:
    """The decision for a problem on a target.

    Variants in ``excluded``, which failed there, are passed over, and the schedules in ``refused``, which cannot take
    the layout of a call's tensors. With ``deterministic`` it is the variant next to the chosen one whose results repeat
    to the bit; those next to which there is none are passed over too.
    """
    found = candidates(spec, problem, target, caches, excluded, refused, deterministic=deterministic)
    if found:
        decision = min(found, key=_rank).to_decision()
        variant = served(decision.variant, deterministic)
        twin = "" if variant == decision.variant else "; its twin that repeats to the bit, which was not measured"
        return replace(decision, variant=variant, reason=decision.reason + twin)
    without = f", {' and '.join(refused)} aside" if refused else ""
    reason = f"nothing usable is tuned for {spec.name} on {target.slug}{without}: the default config"
    default = _default(spec, problem, target, excluded, refused, deterministic)
    return Decision(default, DecisionKind.DEFAULT, reason)


def candidates(
    spec: AttentionSpec,
    problem: Problem,
    target: Target,
    caches: Sequence[LoadedCache],
    excluded: Container[Variant] = frozenset(),
    refused: Collection[Schedule] = (),
    *,
    deterministic: bool = False,
) -> list[Match]:
    """The entries that decide() chooses among, in the caches' order."""
    default = _default(spec, problem, target, excluded, refused, deterministic)
    too_small_for = _slow_to_launch(spec, problem)
    found = [
        match
        for match in matches(spec, problem, caches)
        if served(match.entry.variant, deterministic) not in excluded
        and match.entry.schedule not in refused
        and (match.kind is DecisionKind.EXACT or match.entry.schedule not in too_small_for)
        and (match.entry.variant.deterministic.is_deterministic or not deterministic)
        and (match.entry.source is Source.MEASURED or match.entry.schedule is default.schedule)
    ]
    newest: dict[tuple[object, ...], TunedEntry] = {}
    for match in sorted(found, key=lambda match: match.entry.rank):
        newest[_contest(match)] = match.entry
    return [match for match in found if match.entry.schedule is newest[_contest(match)].schedule]


def served(variant: Variant, deterministic: bool) -> Variant:
    """What a call gets where this was chosen: with ``deterministic`` its twin, which repeats to the bit."""
    return variant.deterministic if deterministic else variant


def _contest(match: Match) -> tuple[object, ...]:
    """What only one schedule can win: in a cache, with a triton, on a bucket."""
    return match.cache_path, match.entry.source, match.entry.bucket, match.entry.key.triton_minor


def _default(
    spec: AttentionSpec,
    problem: Problem,
    target: Target,
    excluded: Container[Variant],
    refused: Collection[Schedule],
    deterministic: bool,
) -> Variant:
    """The first default variant that nothing speaks against, or else the last, portable's."""
    defaults = [
        served(Variant(spec, *default), deterministic)
        for default in default_configs(spec, problem.dtype, target.limits)
    ]
    passed_over = {*refused, *_slow_to_launch(spec, problem)}
    usable = (
        variant
        for variant in defaults
        if variant not in excluded
        and variant.schedule not in passed_over
        and (variant.is_deterministic or not deterministic)
    )
    return next(usable, defaults[-1])


def _slow_to_launch(spec: AttentionSpec, problem: Problem) -> list[Schedule]:
    """Schedules that a problem is too small for."""
    size = operations(spec, problem)
    return [schedule for schedule, least in LEAST_OPERATIONS.items() if size < least]


def matches(spec: AttentionSpec, problem: Problem, caches: Sequence[LoadedCache]) -> list[Match]:
    """Every entry that could serve, in the caches' order."""
    bucket = Bucket.of(problem)
    found = (
        _match(entry, loaded.path, problem, bucket)
        for loaded in caches
        for entry in loaded.cache.entries
        if entry.spec == spec
    )
    return [match for match in found if match is not None]


def best_by_kind(found: Sequence[Match]) -> dict[tuple[Source, DecisionKind], Match]:
    """The best match of each source and kind: the steps of a look-up, for people to read."""
    best: dict[tuple[Source, DecisionKind], Match] = {}
    for match in sorted(found, key=_rank):
        best.setdefault((match.entry.source, match.kind), match)
    return best


def smaller_defaults(spec: AttentionSpec, dtype: DType, limits: Limits) -> Iterator[Variant]:
    """The default variants, the preferred first, then portable's on targets with ever less shared memory."""
    previous = None
    for default in default_configs(spec, dtype, limits):
        previous = Variant(spec, *default)
        yield previous
    while (limits := Limits(limits.arch, limits.shared_memory // 2)).shared_memory >= 1024:
        variant = Variant(spec, *default_configs(spec, dtype, limits)[-1])
        if variant != previous:
            yield variant
        previous = variant


def _match(entry: TunedEntry, cache_path: Path, problem: Problem, bucket: Bucket) -> Match | None:
    distance = bucket.distance(entry.bucket)
    if distance is None:
        return None
    differences = entry.differences
    if entry.problem == problem and not differences:
        kind = DecisionKind.EXACT
    else:
        kind = DecisionKind.BUCKET if entry.bucket == bucket else DecisionKind.NEAREST
    return Match(entry, cache_path, kind, distance, differences)


def _rank(match: Match) -> tuple[bool, int, float, bool]:
    return (
        match.entry.source is not Source.MEASURED,
        list(DecisionKind).index(match.kind),
        match.distance,
        bool(match.differences),
    )

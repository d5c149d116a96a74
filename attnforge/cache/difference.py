"""How two tuned caches differ."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from attnforge.cache.schema import Entry, TunedCache, TunedEntry, UnfitEntry
from attnforge.codegen import fields_of

COMPARED: dict[str, Callable[[Entry], object]] = {
    "schedule": lambda entry: str(entry.schedule),
    "config": lambda entry: _plain_config(entry),
    "source": lambda entry: str(entry.source),
    "median_ms": lambda entry: entry.median_ms,
    "gain": lambda entry: entry.gain,
    "triton": lambda entry: entry.toolchain.triton,
    "templates": lambda entry: entry.toolchain.templates,
}
"""What of two entries for the same spec and bucket is compared; when and on which problem they were found is not."""


def _plain_config(entry: Entry) -> dict[str, bool | int | str]:
    if isinstance(entry, TunedEntry):
        return {name: _plain(value) for name, value in fields_of(entry.config).items()}
    return entry.config if isinstance(entry, UnfitEntry) else {}


def _plain(value: object) -> bool | int | str:
    return value if isinstance(value, bool | int) else str(value)


@dataclass(frozen=True, slots=True)
class EntryDifference:
    """Two entries for one spec and bucket that say different things."""

    a: Entry
    b: Entry
    fields: dict[str, tuple[object, object]]
    """By name in COMPARED: what A says, and B."""


@dataclass(frozen=True, slots=True)
class CacheDifference:
    """Two caches, A and B, entry by entry."""

    only_in_a: tuple[Entry, ...]
    only_in_b: tuple[Entry, ...]
    different: tuple[EntryDifference, ...]
    same: int
    """Entries that say the same in both."""
    same_target: bool

    @property
    def is_empty(self) -> bool:
        """Whether the two say the same."""
        return self.same_target and not (self.only_in_a or self.only_in_b or self.different)


def difference(a: TunedCache, b: TunedCache) -> CacheDifference:
    """What two caches say differently; each tuple is sorted by spec and bucket."""
    pairs, only_in_a, only_in_b = _paired(a.all_entries, b.all_entries, lambda entry: entry.key)
    # What is left was found with different toolchains: it still answers the same question.
    more, only_in_a, only_in_b = _paired(only_in_a, only_in_b, lambda entry: (entry.spec, entry.bucket))
    pairs += more
    different = [EntryDifference(one, other, fields) for one, other in pairs if (fields := _fields(one, other))]
    return CacheDifference(
        only_in_a=_sorted(only_in_a),
        only_in_b=_sorted(only_in_b),
        different=tuple(sorted(different, key=lambda found: _place(found.a))),
        same=len(pairs) - len(different),
        same_target=a.target == b.target,
    )


_Pairs = list[tuple[Entry, Entry]]


def _paired(
    left: Iterable[Entry], right: Iterable[Entry], key: Callable[[Entry], Hashable]
) -> tuple[_Pairs, list[Entry], list[Entry]]:
    """Entries of equal key, one of each side, and what is left over of either."""
    unpaired: dict[Hashable, list[Entry]] = {}
    for entry in right:
        unpaired.setdefault(key(entry), []).append(entry)
    pairs, alone = [], []
    for entry in left:
        candidates = unpaired.get(key(entry))
        if candidates:
            pairs.append((entry, candidates.pop(0)))
        else:
            alone.append(entry)
    return pairs, alone, [entry for entries in unpaired.values() for entry in entries]


def _fields(a: Entry, b: Entry) -> dict[str, tuple[object, object]]:
    values = {name: (of(a), of(b)) for name, of in COMPARED.items()}
    return {name: (one, other) for name, (one, other) in values.items() if one != other}


def _sorted(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=_place))


def _place(entry: Entry) -> tuple[str, int, str]:
    return entry.spec.name, entry.bucket.seqlen_q, entry.bucket.name

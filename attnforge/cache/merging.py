"""Tuned caches from other machines: whether they may be merged, and what that changes, entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from attnforge.cache.reader import read_users_cache
from attnforge.cache.schema import Entry, Source, TunedCache
from attnforge.cache.store import merge
from attnforge.codegen import AttentionSpec
from attnforge.errors import AttnforgeError, CacheRefused, UntrustedCacheRefused
from attnforge.problem import Bucket
from attnforge.target import Target

MEASURED_AT_LAST = "measured, where there was a prediction"
THE_SAME = "the same entry is there"


class CacheNotFoundError(AttnforgeError):
    """A tuned cache that was named and does not exist."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no file {path}: `attnforge cache path` prints where this machine's is")
        self.path = path


class UntrustedSourceRefused(CacheRefused):
    """Somebody else could still change what is about to be merged."""

    remedy = "copy it to a folder that only you can write, such as your home, and merge the copy"


class SourceOfAnotherTargetRefused(CacheRefused):
    """Its configs were found on another GPU than those that they would stand beside."""

    def __init__(self, path: Path, found: Target, wanted: Target, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(path, f"it was made for {found.slug}, not for {wanted.slug}")


class Change(StrEnum):
    """What becomes of an entry that is merged."""

    ADDED = "added"
    REPLACED = "replaced"
    """It takes the place of an entry that was there."""
    KEPT = "kept"
    """What was there stays."""


@dataclass(frozen=True, slots=True)
class MergedEntry:
    """What became of one entry of a source, and why."""

    change: Change
    reason: str
    source: Path
    offered: Entry


@dataclass(frozen=True, slots=True)
class MergeSource:
    """A tuned cache that was read to be merged."""

    path: Path
    cache: TunedCache


def read_source(path: Path) -> MergeSource:
    """A cache to merge: held to the rules of the user's own, because its entries become the user's.

    Raises CacheNotFoundError, and CacheRefused with the reason.
    """
    absolute = path.absolute()
    try:
        return MergeSource(path, read_users_cache(absolute, root=absolute.parent))
    except FileNotFoundError as error:
        raise CacheNotFoundError(path) from error
    except UntrustedCacheRefused as refused:
        raise UntrustedSourceRefused(path, refused.reason) from refused


def target_of(sources: Sequence[MergeSource], gpu: Target | None) -> Target:
    """The one target of ``sources``, of which there is at least one.

    ``gpu`` is the GPU that must be able to use the entries; None where any target will do. Raises
    SourceOfAnotherTargetRefused, which says what to do instead.
    """
    first = sources[0]
    for source in sources[1:]:
        if source.cache.target.slug != first.cache.target.slug:
            remedy = "merge the caches of each target in a run of their own"
            raise SourceOfAnotherTargetRefused(source.path, source.cache.target, first.cache.target, remedy)
    target = first.cache.target
    if gpu is not None and target.slug not in (gpu.slug, gpu.arch):
        remedy = f"merge it on such a machine, or keep it for one with `--into {target.slug}.yaml`"
        raise SourceOfAnotherTargetRefused(first.path, target, gpu, remedy)
    return target


def explain_merge(existing: Iterable[Entry], sources: Iterable[MergeSource]) -> list[MergedEntry]:
    """What merging ``sources``, in order, into ``existing`` entries changes: one record for each entry of theirs."""
    explained = []
    standing = tuple(existing)
    for source in sources:
        merged = merge(standing, source.cache.all_entries)
        before, after = _Entries(standing), _Entries(merged)
        for entry in source.cache.all_entries:
            change, reason = _change(entry, before, after)
            explained.append(MergedEntry(change, reason, source.path, entry))
        standing = merged
    return explained


class _Entries:
    """The entries of a cache by their key, and the sources of those for one spec and bucket."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.by_key = {entry.key: entry for entry in entries}
        self._sources: dict[tuple[AttentionSpec, Bucket], set[Source]] = {}
        for entry in self.by_key.values():
            self._sources.setdefault((entry.spec, entry.bucket), set()).add(entry.source)

    def sources(self, entry: Entry) -> set[Source]:
        return self._sources.get((entry.spec, entry.bucket), set())


def _change(offered: Entry, before: _Entries, after: _Entries) -> tuple[Change, str]:
    rival = before.by_key.get(offered.key)
    if rival == offered:
        return Change.KEPT, THE_SAME
    if after.by_key.get(offered.key) == offered:
        if rival is not None:
            return Change.REPLACED, _why_better(offered, rival)
        if offered.source is Source.MEASURED and Source.PREDICTED in before.sources(offered):
            return Change.REPLACED, MEASURED_AT_LAST
        if before.sources(offered):
            return Change.ADDED, "beside the entry of another triton, other templates or another schedule"
        return Change.ADDED, "nothing was there"
    if offered.source is Source.PREDICTED and Source.MEASURED in after.sources(offered):
        return Change.KEPT, "a measured entry is there, this one is a prediction"
    assert rival is not None  # merge() leaves an entry out for nothing else
    if offered.noise and not rival.noise:
        return Change.KEPT, f"its comparison was noisy ({', '.join(offered.noise)}), that of the entry there was not"
    return Change.KEPT, f"the entry there is newer ({_when(rival, offered)})"


def _why_better(offered: Entry, rival: Entry) -> str:
    if offered.source is not rival.source:
        return MEASURED_AT_LAST
    if rival.noise and not offered.noise:
        return f"the comparison there was noisy ({', '.join(rival.noise)}), its own was not"
    if offered.created == rival.created:
        return "of the same moment, and merged last"
    return f"newer ({_when(offered, rival)})"


def _when(newer: Entry, older: Entry) -> str:
    """Both dates, with the time of day where the day is the same."""
    style = "%Y-%m-%d" if newer.created.date() != older.created.date() else "%Y-%m-%d %H:%M:%S"
    return f"{newer.created:{style}}, not {older.created:{style}}"

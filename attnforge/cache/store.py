"""Where tuned caches live, in which order they are looked up, and how new entries get in."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

from attnforge import __version__
from attnforge.cache.document import decode, encode
from attnforge.cache.reader import SIZE_LIMIT, read_shipped_cache, read_users_cache
from attnforge.cache.replacement import move_aside, remove_leftovers, replace_file
from attnforge.cache.schema import Entry, EntryKey, Source, TunedCache, TunedEntry, UnfitEntry
from attnforge.cache.trusted_files import UntrustedFileError, open_trusted_folder
from attnforge.errors import (
    CacheNotWrittenError,
    CacheRefused,
    CacheRefusedWarning,
    CorruptCacheRefused,
    ForeignCacheRefused,
    UntrustedCacheRefused,
)
from attnforge.settings import Settings
from attnforge.target import Target

LOCK_TIMEOUT = 60.0
"""Seconds to wait for another tuner, which holds the lock for well under one."""


class Origin(StrEnum):
    """Whose file a tuned cache is."""

    USER = "user"
    SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class CacheFile:
    """A place where a tuned cache may be."""

    path: Path
    origin: Origin


@dataclass(frozen=True, slots=True)
class LoadedCache:
    """A tuned cache that was read and accepted."""

    path: Path
    origin: Origin
    cache: TunedCache


class TunedCacheStore:
    """The tuned caches of one user: their own, before the shipped ones."""

    def __init__(self, settings: Settings, shipped_dir: Path | None = None) -> None:
        """``shipped_dir`` is the installed package's unless a test gives another."""
        self._settings = settings
        shipped_dir = shipped_dir or Path(str(files("attnforge.generated"))) / "tuned"
        self._folders = ((settings.tuned_dir, Origin.USER), (shipped_dir, Origin.SHIPPED))
        self._warned: set[tuple[Path, str]] = set()

    def path(self, target: Target) -> Path:
        """The file that a tune on ``target`` writes and that is looked up first."""
        return self._settings.tuned_dir / f"{target.slug}.yaml"

    def places(self, target: Target) -> tuple[CacheFile, ...]:
        """Where a target's caches may be, in look-up order: the user's before ours, the GPU's before its arch's."""
        stems = dict.fromkeys((target.slug, target.arch))
        return tuple(CacheFile(folder / f"{stem}.yaml", origin) for folder, origin in self._folders for stem in stems)

    def all_places(self) -> tuple[CacheFile, ...]:
        """Every cache file there is, for whatever target."""
        return tuple(
            CacheFile(path, origin) for folder, origin in self._folders for path in sorted(folder.glob("*.yaml"))
        )

    def target(self, name: str) -> Target:
        """The target of a cache file's stem, such as sm_90-nvidia-h200, or of an arch.

        Raises UnknownTargetError; CacheRefused when all files of that stem are.
        """
        places, why_not = self.all_places(), None
        for place in places:
            if place.path.stem == name:
                try:
                    return self.read(place).target
                except CacheRefused as refused:
                    why_not = refused
        if why_not is not None and not Target.is_known(name):
            raise why_not
        return Target.for_arch(name, others=[place.path.stem for place in places])

    def read(self, place: CacheFile) -> TunedCache:
        """The cache at one place.

        Raises FileNotFoundError where there is none, CacheRefused when it must not be used.
        """
        if place.origin is Origin.SHIPPED:
            cache = read_shipped_cache(place.path)
        else:
            cache = read_users_cache(place.path, root=self._settings.cache_dir)
        if cache.target.slug != place.path.stem:
            raise ForeignCacheRefused(place.path, f"it was made for {cache.target.slug}, its name says otherwise")
        return cache

    def load(self, target: Target) -> tuple[LoadedCache, ...]:
        """The target's caches in look-up order; a refused one is left out, with one CacheRefusedWarning a store.

        What a file holds for other templates alone is left out likewise.
        """
        loaded = []
        for place in self.places(target):
            try:
                cache = self.read(place)
            except FileNotFoundError:
                continue
            except CacheRefused as refused:
                self._warn_once(place.path, f"{refused} (until then other caches or the defaults serve)")
                continue
            loaded.append(LoadedCache(place.path, place.origin, cache))
            if cache.unserved:
                self._warn_once(place.path, _without(place.path, cache.unserved))
        return tuple(loaded)

    def _warn_once(self, path: Path, message: str) -> None:
        if (path, message) not in self._warned:
            self._warned.add((path, message))
            warnings.warn(message, CacheRefusedWarning, stacklevel=3)

    def write(self, target: Target, entries: Iterable[TunedEntry]) -> Path:
        """Merges entries into the target's file and returns its path; without any, the file is left alone.

        The file is at any moment either the old or the new one. See merge() for which of two entries stays. A corrupt
        file is moved aside with a warning. Raises CacheRefused, and writes nothing, when the file is foreign, newer or
        untrusted; CacheNotWrittenError when the lock cannot be had, the disk is full, or an entry could not be read
        back.
        """
        path, entries = self.path(target), tuple(entries)
        if entries:
            self._merge(path, target, entries, root=self._settings.cache_dir, moves_corrupt=True)
        return path

    def check_writable(self, target: Target) -> None:
        """See before hours of work whether ``write`` could. Raises as it does."""
        path, root = self.path(target), self._settings.cache_dir
        with self._writable(path, root), suppress(CorruptCacheRefused):  # which ``write`` would move aside
            _existing(path, target, root, moves_corrupt=False)

    def merge_into(self, path: Path, target: Target, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """Does what ``write`` does to any file, and returns the entries that it held before.

        A corrupt file is refused too, unless it is the target's own: a path that somebody typed may be something else.
        """
        is_own = path.absolute() == self.path(target).absolute()
        root = self._settings.cache_dir if is_own else path.absolute().parent
        return self._merge(path.absolute(), target, tuple(entries), root=root, moves_corrupt=is_own)

    def _merge(
        self, path: Path, target: Target, entries: tuple[Entry, ...], *, root: Path, moves_corrupt: bool
    ) -> tuple[Entry, ...]:
        with self._writable(path, root):
            existing = _existing(path, target, root, moves_corrupt)
            _replace(path, TunedCache.of(target, __version__, merge(existing, entries)))
            return existing

    @contextmanager
    def _writable(self, path: Path, root: Path) -> Iterator[None]:
        """Holds a file's lock, in folders that are there and nobody else's."""
        import filelock

        try:
            for folder in (root, path.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(open_trusted_folder(folder, root=root))
            with filelock.FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT, mode=0o600):
                yield
        except UntrustedFileError as error:
            raise UntrustedCacheRefused(path, str(error)) from error
        except filelock.Timeout as error:
            reason = f"another process has held {path}.lock for {LOCK_TIMEOUT:.0f} seconds; try again when it is done"
            raise CacheNotWrittenError(path, reason) from error
        except OSError as error:
            raise CacheNotWrittenError(path, error.strerror or str(error)) from error


def _without(path: Path, unfit: Sequence[UnfitEntry]) -> str:
    """What to say of entries that nothing stands in for."""
    counts = Counter(entry.reason for entry in unfit)
    reasons = "; ".join(f"{count} of them: {reason}" for reason, count in counts.items())
    return (
        f"tuned cache {path}: {len(unfit)} entries of other templates are not used, for their configs mean nothing to "
        f"these ({reasons}); run `attnforge tune` to have them measured again"
    )


def _existing(path: Path, target: Target, root: Path, moves_corrupt: bool) -> tuple[Entry, ...]:
    """What a file holds before a merge; a corrupt one is moved out of the way, where that is allowed."""
    try:
        existing = read_users_cache(path, root=root)
    except FileNotFoundError:
        return ()
    except CorruptCacheRefused as refused:
        if not moves_corrupt:
            raise
        aside = move_aside(path)
        warnings.warn(f"{refused.reason}: kept {path} as {aside.name}", CacheRefusedWarning, stacklevel=5)
        return ()
    if existing.target.slug != target.slug:
        raise ForeignCacheRefused(path, f"it was made for {existing.target.slug}, not for {target.slug}")
    return existing.all_entries


def _replace(path: Path, cache: TunedCache) -> None:
    content = encode(cache)
    if len(content) > SIZE_LIMIT:
        raise CacheNotWrittenError(path, f"it would have {len(content)} bytes, more than is read back; move it away")
    try:
        decode(content, path)
    except CorruptCacheRefused as refused:
        raise CacheNotWrittenError(path, f"an entry could not be read back: {refused.reason}") from refused
    remove_leftovers(path)
    replace_file(path, content)


def merge(existing: Iterable[Entry], new: Iterable[Entry]) -> tuple[Entry, ...]:
    """At most one entry a key, that of the highest rank; of equals the new one. Predictions of what was measured since
    go."""
    best: dict[EntryKey, Entry] = {}
    for entry in (*existing, *new):
        rival = best.get(entry.key)
        if rival is None or entry.rank >= rival.rank:
            best[entry.key] = entry
    measured = {(e.spec, e.bucket) for e in best.values() if e.source is Source.MEASURED}
    return tuple(e for e in best.values() if e.source is Source.MEASURED or (e.spec, e.bucket) not in measured)

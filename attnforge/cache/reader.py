"""Reads a tuned cache's file."""

from __future__ import annotations

from pathlib import Path

from attnforge.cache.document import decode
from attnforge.cache.schema import TunedCache
from attnforge.cache.trusted_files import TooLargeFileError, UntrustedFileError, read_trusted
from attnforge.errors import CacheRefused, CorruptCacheRefused, UntrustedCacheRefused

SIZE_LIMIT = 4 * 2**20
"""Bytes of a file: about 6500 entries, read in about a second (500 took 0.07 s)."""


def read_users_cache(path: Path, *, root: Path) -> TunedCache:
    """The cache in a file that a user owns; the folders from ``root`` down to it must be theirs too.

    Raises FileNotFoundError where there is none, CacheRefused, with the reason, when it must not be used.
    """
    try:
        content = read_trusted(path, root=root, limit=SIZE_LIMIT)
    except TooLargeFileError as error:
        raise CorruptCacheRefused(path, str(error)) from error
    except UntrustedFileError as error:
        raise UntrustedCacheRefused(path, str(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheRefused(path, f"it cannot be read ({error.strerror})") from error
    return decode(content, path)


def read_shipped_cache(path: Path) -> TunedCache:
    """The cache in a file of the installed package, which is as trusted as the code beside it; raises likewise."""
    return read_to_look_at(path)


def read_to_look_at(path: Path) -> TunedCache:
    """The cache in a file whose entries are shown and not used, whoever could have written it; raises likewise."""
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheRefused(path, f"it cannot be read ({error.strerror})") from error
    return decode(content, path)

"""Replaces a file so that a crash at any moment leaves the old or the new one, never half."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` with mode 0600, durably. Raises OSError, and leaves the old file as it was."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Removes what writers of ``path`` left when they were killed; the caller holds the lock that all of them take."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink()


def move_aside(path: Path) -> Path:
    """Renames a refused file to a free name beside it, such as ``sm_90.yaml.refused``, and returns that."""
    names = (f"{path.name}.refused{'' if n == 1 else f'-{n}'}" for n in count(1))
    aside = next(candidate for name in names if not os.path.lexists(candidate := path.with_name(name)))
    path.rename(aside)
    return aside


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Opens files that nobody but their user could have written.

Checks are made on open descriptors, never on paths: what is checked is what is read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for its writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class UntrustedFileError(Exception):
    """A file or folder that another user owns or could change, or that is not what it should be."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path


class TooLargeFileError(UntrustedFileError):
    """A file with more bytes than its reader takes."""


def read_trusted(path: Path, *, root: Path, limit: int) -> bytes:
    """The content of ``path``, a plain file below ``root``; every folder from ``root`` down is checked too.

    Raises FileNotFoundError when it or a folder is missing, UntrustedFileError when root, folder or file is a symlink,
    belongs to somebody else than this user or root, or is writable for group or others; TooLargeFileError, which is
    one, when the file has more than ``limit`` bytes.
    """
    folder = open_trusted_folder(path.parent, root=root)
    try:
        descriptor = _open(path, _FILE_FLAGS, folder)
    finally:
        os.close(folder)
    with open(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TooLargeFileError(path, f"has more than {limit} bytes")
    return content


def open_trusted_folder(folder: Path, *, root: Path) -> int:
    """A descriptor of ``folder``, which is ``root`` or below it, for the caller to close; raises as read_trusted."""
    descriptor = _open(root, _FOLDER_FLAGS, None)
    path = root
    for part in folder.relative_to(root).parts:
        path = path / part
        outer = descriptor
        try:
            descriptor = _open(path, _FOLDER_FLAGS, outer)
        finally:
            os.close(outer)
    return descriptor


def _open(path: Path, flags: int, folder: int | None) -> int:
    """Opens and checks ``path``, or its last part inside an open ``folder``."""
    try:
        descriptor = os.open(path if folder is None else path.name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            raise UntrustedFileError(path, "is a symbolic link") from error
        raise UntrustedFileError(path, f"cannot be opened ({error.strerror})") from error
    try:
        _check(path, os.fstat(descriptor), stat.S_ISDIR if flags & os.O_DIRECTORY else stat.S_ISREG)
    except UntrustedFileError:
        os.close(descriptor)
        raise
    return descriptor


def _check(path: Path, facts: os.stat_result, is_expected_kind: Callable[[int], bool]) -> None:
    if not is_expected_kind(facts.st_mode):
        raise UntrustedFileError(path, "is not a plain file")
    if facts.st_uid not in (os.geteuid(), 0):
        raise UntrustedFileError(path, f"belongs to user {facts.st_uid}, not to you ({os.geteuid()}) or root")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedFileError(path, f"can be written by others (mode {stat.S_IMODE(facts.st_mode):04o})")

"""Writes kernels that are not shipped into the user's own folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attnforge.cache.replacement import replace_file
from attnforge.cache.trusted_files import UntrustedFileError, open_trusted_folder
from attnforge.codegen import Variant, render
from attnforge.errors import AttnforgeError


class KernelsNotWrittenError(AttnforgeError):
    """The user's kernels folder does not take a file, or others could change what is in it."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"no kernels are written to {folder}: {reason}; ATTNFORGE_CACHE_DIR moves the folder")


def write_users_kernels(variants: Iterable[Variant], folder: Path) -> tuple[Variant, ...]:
    """Write the variants' modules into a user's kernels folder, and return those whose file was new or changed.

    Raises KernelsNotWrittenError when the folder is not the user's own, or the disk refuses.
    """
    changed = []
    try:
        for variant in variants:
            file, content = folder / variant.path, render(variant).encode()
            _make_private_folders(file.parent, folder)
            if not file.is_file() or file.read_bytes() != content:
                replace_file(file, content)
                changed.append(variant)
    except (OSError, UntrustedFileError) as error:
        raise KernelsNotWrittenError(folder, str(error)) from error
    return tuple(changed)


def _make_private_folders(folder: Path, top: Path) -> None:
    """Make ``folder``, for its user alone to write whatever the umask; from ``top`` down, existing ones must be so."""
    for path in (*reversed(folder.parents), folder):
        path.mkdir(mode=0o700, exist_ok=True)
    os.close(open_trusted_folder(folder, root=top))

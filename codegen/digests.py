"""What a schedule's kernels are rendered from, as a digest: equal digests mean equal text for equal variants."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from pathlib import Path

from attnforge.codegen.schedules.base import ScheduleDefinition

SHARED_SOURCES = ("head_dims.py", "render.py", "schedules/base.py", "spec.py", "variant.py")
"""Files of codegen that every rendering goes through."""
SPACE = "space.py"
"""How files of a schedule's folder end that say where to look for configs, and nothing of what a config renders to."""
_REFERENCE = re.compile(r"""\{%-?\+?\s*(?:include|import|from|extends)\s+["']([^"']+)["']""")


def rendering_digest(definition: ScheduleDefinition, templates: Path) -> str:
    """Sixteen hex digits that change when anything does that a schedule's kernels of one pass are rendered from.

    That is its template and the templates that this one includes, codegen's shared files, and the schedule's own but
    for its space.

    Args:
        definition: the schedule and pass.
        templates: the folder of the templates.
    """
    codegen = Path(str(files("attnforge.codegen")))
    hashed = hashlib.sha256()
    for folder, names in (
        (templates, templates_of(definition, templates)),
        (codegen, (*SHARED_SOURCES, *_own_sources(definition, codegen))),
    ):
        for name in names:
            hashed.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    return hashed.hexdigest()[:16]


def templates_of(definition: ScheduleDefinition, folder: Path) -> tuple[str, ...]:
    """The names of a schedule's template and of all that it includes, sorted."""
    found, todo = set[str](), [definition.template]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _REFERENCE.findall((folder / name).read_text(encoding="utf-8"))
    return tuple(sorted(found))


def _own_sources(definition: ScheduleDefinition, codegen: Path) -> tuple[str, ...]:
    paths = (codegen / "schedules" / definition.schedule).glob("*.py")
    return tuple(
        sorted(f"schedules/{definition.schedule}/{path.name}" for path in paths if not path.name.endswith(SPACE))
    )

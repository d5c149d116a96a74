"""Renders a variant's module through its schedule's template."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from attnforge.codegen.digests import rendering_digest
from attnforge.codegen.errors import CodegenError
from attnforge.codegen.head_dims import Chunk
from attnforge.codegen.schedules.base import Choice, ScheduleDefinition, fields_of
from attnforge.codegen.spec import AttentionSpec
from attnforge.codegen.variant import Variant

if TYPE_CHECKING:
    import jinja2


class UnsafeValueError(CodegenError):
    """A value reached a template that is not an int, a bool, an enum member or text that codegen made."""

    def __init__(self, value: object) -> None:
        super().__init__(f"a template may print ints, bools and enum members, not {type(value).__name__} {value!r}")


class _CodegenText(str):
    """Text that codegen made itself from checked values, such as the name of a variant."""


def _printed(value: object) -> object:
    """What a template may print: a caller's string can never become code."""
    if value is None or isinstance(value, bool | int | _CodegenText):
        return value
    if isinstance(value, Enum):
        return repr(str(value.value))
    if isinstance(value, str) and value.isascii() and (value == "" or value.isalnum()):
        return value  # a chunk's suffix, or part of a name in the template itself: never code
    raise UnsafeValueError(value)


def _names(stem: str, chunks: Sequence[Chunk]) -> _CodegenText:
    """The variables that hold a tile's chunks, as an argument list: ``acc0, acc1``, or ``acc`` when there is one."""
    return _CodegenText(", ".join(f"{stem}{chunk.suffix}" for chunk in chunks))


def _tuple(stem: str, chunks: Sequence[Chunk]) -> _CodegenText:
    """The variables that hold a tile's chunks, as a tuple: ``(acc0, acc1)``, or ``(acc,)`` when there is one."""
    return _CodegenText(f"({_names(stem, chunks)}{',' if len(chunks) == 1 else ''})")


def _widths(chunks: Sequence[Chunk]) -> _CodegenText:
    """The widths of a head dim's chunks, for a reader: ``64 + 16``."""
    return _CodegenText(" + ".join(str(chunk.width) for chunk in chunks))


def _assignments(config_fields: Mapping[str, Choice]) -> _CodegenText:
    """A config for a reader, wrapped and aligned for a header: ``block_m=128, block_n=64, ...``."""
    text = ", ".join(f"{field}={value}" for field, value in config_fields.items())
    return _CodegenText(textwrap.fill(text, width=100).replace("\n", "\n" + " " * 16))


@dataclass(frozen=True)
class TemplateSet:
    """The templates of one folder: the installed ones, or another folder's for tests of the gates."""

    folder: Path

    @cached_property
    def environment(self) -> jinja2.Environment:
        """Strict: an undefined name is an error; nothing but checked values is printed."""
        import jinja2  # here: a model that runs shipped kernels never renders

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(self.folder),
            undefined=jinja2.StrictUndefined,
            finalize=_printed,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
        )
        environment.filters |= {"names": _names, "tuple": _tuple, "widths": _widths, "assignments": _assignments}
        return environment

    def digest_of(self, definition: ScheduleDefinition) -> str:
        """Sixteen hex digits that change when anything does that the definition's kernels are rendered from."""
        return rendering_digest(definition, self.folder)

    @staticmethod
    @lru_cache(maxsize=1)
    def installed() -> TemplateSet:
        """The templates that came with attnforge."""
        return TemplateSet(Path(str(files("attnforge.templates"))))


def command_for(spec: AttentionSpec) -> str:
    """The command that renders a spec's default variant."""
    dims = f"--head-dim {spec.head_dim}"
    if spec.head_dim_v != spec.head_dim:
        dims += f" --head-dim-v {spec.head_dim_v}"
    return f"attnforge generate {dims} --pass {spec.pass_} {'--causal' if spec.causal else '--no-causal'}"


def render(variant: Variant, templates: TemplateSet | None = None) -> str:
    """The source text of a variant's module.

    Deterministic: equal variants and templates give equal text. Raises UnsafeValueError or jinja2.UndefinedError when a
    template asks for what it must not have.
    """
    templates = templates or TemplateSet.installed()
    definition = variant.definition
    return templates.environment.get_template(definition.template).render(
        spec=variant.spec,
        config=variant.config,
        config_fields=fields_of(variant.config),
        variant_name=_CodegenText(variant.name),
        command=_CodegenText(command_for(variant.spec)),
        mask=_CodegenText("causal, aligned bottom-right" if variant.spec.causal else "none"),
        template_name=_CodegenText(definition.template),
        template_digest=_CodegenText(templates.digest_of(definition)),
        **definition.context(variant.spec, variant.config),
    )

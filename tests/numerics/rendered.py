"""Rendered modules with tiny tiles, from the installed templates or from faulty copies of them."""

import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

from attnforge.codegen import (
    AttentionSpec,
    DType,
    HeadDimSplit,
    Limits,
    Pass,
    Schedule,
    TemplateSet,
    Variant,
    render,
    schedule_of,
)
from attnforge.kernels import KernelSource, Origin

TILE = 32


def spec_of(pass_: Pass, head_dim: int, head_dim_v: int | None = None, *, causal: bool) -> AttentionSpec:
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    return AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim_v, causal=causal)


def variant_of(
    spec: AttentionSpec,
    block_m: int = TILE,
    block_n: int = TILE // 2,
    split: HeadDimSplit = HeadDimSplit.CHUNKS,
) -> Variant:
    """Portable's default config with small tiles, and without what the interpreter cannot do."""
    config = schedule_of(Schedule.PORTABLE, spec.pass_).default(spec, DType.FP16, Limits("sm_90", 227 << 10))
    changed: dict[str, object] = {"head_dim_split": split}
    for field in fields(config):
        if field.name.endswith("block_m"):
            changed[field.name] = block_m
        elif field.name.endswith("block_n"):
            changed[field.name] = block_n
        elif field.name.endswith("pin_accumulators"):  # inline assembly
            changed[field.name] = False
    return Variant(spec, Schedule.PORTABLE, replace(config, **changed))


def load(variant: Variant, templates: TemplateSet | None = None) -> ModuleType:
    return KernelSource(variant, render(variant, templates), Origin.RENDERED, None).to_module()


def faulty_templates(folder: Path, template: str, substitutions: dict[str, str]) -> TemplateSet:
    """A copy of the installed templates with text replaced in one and in the parts that are named after it.

    Every text must occur somewhere, or the fault is not one.
    """
    shutil.copytree(TemplateSet.installed().folder, folder, dirs_exist_ok=True)
    paths = [folder / template, *(folder / "parts").glob(f"{template.removesuffix('.py.jinja')}_*")]
    for old, new in substitutions.items():
        holders = [path for path in paths if old in path.read_text()]
        assert holders, f"{template} no longer holds {old!r}: seed this fault differently"
        for path in holders:
            path.write_text(path.read_text().replace(old, new))
    return TemplateSet(folder)

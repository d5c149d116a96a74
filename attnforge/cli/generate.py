"""``attnforge generate``: rendered kernels as files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from attnforge.cli.selection import (
    CausalOption,
    HeadDimOption,
    HeadDimVOption,
    PassOption,
    SelectionError,
    selected_specs,
)
from attnforge.codegen import AttentionSpec, Variant, render
from attnforge.errors import AttnforgeError, NoGpuError
from attnforge.settings import Settings
from attnforge.shipping import ARCHS, Differences, Shipment, default_variants
from attnforge.target import Target
from attnforge.users_kernels import write_users_kernels

TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="Arch whose default config is rendered, such as sm_90; this GPU's when left out."),
]


class NotInCheckoutError(AttnforgeError):
    """The shipped kernels can be rewritten where they are sources only."""

    def __init__(self) -> None:
        super().__init__(
            "the shipped kernels are part of this installation and are not rewritten: "
            "say --head-dim N for kernels of another size, or work in a source checkout"
        )


def generate(
    head_dim: HeadDimOption = None,
    head_dim_v: HeadDimVOption = None,
    causal: CausalOption = None,
    pass_: PassOption = None,
    target: TargetOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 unless every shipped file is current.")
    ] = False,
    print_: Annotated[
        bool, typer.Option("--print", help="Write one module to stdout instead of the kernels folder.")
    ] = False,
) -> None:
    """Render kernels into files.

    With --head-dim: kernels of that size, into your own kernels folder, where
    attention() finds them at once.

    Without: the shipped kernels of a source checkout, where the templates, the
    default configs or the shipped tuned caches say something new.
    """
    if not head_dim:
        if any(option is not None for option in (head_dim_v, causal, pass_, target)) or print_:
            raise SelectionError("--head-dim-v, --causal, --pass, --target and --print need --head-dim")
        _shipped(check)
        return
    if check:
        raise SelectionError("--check is about the shipped kernels: leave --head-dim out")
    specs = selected_specs(head_dim, head_dim_v, causal, pass_)
    if print_:
        _print(specs, target)
    else:
        _users(specs, target)


def _shipped(check: bool) -> None:
    shipment = Shipment.installed()
    if not shipment.is_in_checkout:
        raise NotInCheckoutError
    wanted = shipment.wanted()
    if not check:
        changed = shipment.update(wanted)
        _list(changed, {"missing": "added", "stale": "rewritten", "extra": "removed"})
        typer.echo(f"{len(wanted)} files in {shipment.folder}: {'done' if changed else 'all were current'}")
        return
    differences = shipment.differences(wanted)
    if not differences:
        typer.echo(f"{len(wanted)} files in {shipment.folder} are current")
        return
    _list(differences, {"missing": "missing", "stale": "stale", "extra": "extra"})
    typer.echo("The generated files are not what the templates say: run `attnforge generate` and commit them.")
    raise typer.Exit(1)


def _list(differences: Differences, words: dict[str, str]) -> None:
    for kind, word in words.items():
        for path in getattr(differences, kind):
            typer.echo(f"{word:>10}  {path}")


def _print(specs: Sequence[AttentionSpec], target: str | None) -> None:
    if len(specs) > 1:
        raise SelectionError("--print writes one module: choose --pass and --causal or --no-causal")
    variant, *_ = default_variants(specs, [_targets(target)[-1]])
    typer.echo(render(variant), nl=False)


def _users(specs: Sequence[AttentionSpec], target: str | None) -> None:
    folder = Settings.from_environment().kernels_dir
    variants = default_variants(specs, _targets(target))
    written = write_users_kernels(variants, folder)
    for variant in variants:
        typer.echo(f"{'written' if variant in written else 'current':>10}  {folder / variant.path}")
    typer.echo(_next_steps(variants))


def _targets(arch: str | None) -> list[Target]:
    if arch is not None:
        return [Target.for_arch(arch)]
    try:
        return [Target.current()]
    except NoGpuError:
        return [Target.for_arch(arch) for arch in ARCHS]


def _next_steps(variants: tuple[Variant, ...]) -> str:
    specs = [variant.spec for variant in variants]
    dims = " ".join(dict.fromkeys(f"--head-dim {spec.head_dim}" for spec in specs))
    if specs[0].head_dim_v != specs[0].head_dim:
        dims += f" --head-dim-v {specs[0].head_dim_v}"
    return (
        "attention() uses them from now on, with their default configs. "
        f"`attnforge tune {dims}` finds faster ones on this GPU."
    )

"""The commands of ``attnforge``.

Each command is the function of its name in the module of its name in this folder (those of ``cache`` are the functions
that ``GROUPS`` lists), and is imported when it is invoked, so that ``attnforge --help`` needs neither torch nor optuna.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from attnforge import __version__
from attnforge.cli import INTERRUPTED
from attnforge.codegen import CodegenError
from attnforge.errors import AttnforgeError

COMMANDS = {
    "tune": "Find the fastest config of each kernel on this GPU, or predict it for another.",
    "explain": "Show which kernel and config a call would get, and why.",
    "report": "Write what tuning brought as one HTML page.",
    "bench": "Time attnforge beside PyTorch's and other attention kernels.",
    "generate": "Render kernels into files; --check proves that the shipped ones are current.",
    "compile": "Compile kernels for a target, with or without its GPU, and report what they use.",
    "cache": "Show, verify, merge and compare tuned caches.",
}
"""One line of help for each command."""

GROUPS = {"cache": ("path", "show", "verify", "merge", "diff")}
"""Commands that have commands of their own."""


class _LazyGroup(TyperGroup):
    """Lists every command from ``COMMANDS`` and imports the one that is invoked."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        command = _loaded(name) if name in COMMANDS else listed
        # From here on it is an exception: what a command has begun is put away.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            typer.echo("interrupted", err=True)
            raise SystemExit(INTERRUPTED) from None


def _loaded(name: str) -> Any:
    """The real command, from its module."""
    module = import_module(f"attnforge.cli.{name}")
    functions = GROUPS.get(name, (name,))
    command = typer.Typer(help=COMMANDS[name], no_args_is_help=name in GROUPS, add_completion=False)
    for function in functions:
        command.command(function)(getattr(module, function))
    return typer.main.get_command(command)


def _listed(name: str) -> None:
    """Registers what the group's help says of a command; what runs is always the real one."""

    def stands_in() -> None:
        raise AssertionError(f"{name} was not loaded")

    app.command(name, help=COMMANDS[name])(stands_in)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnforge {__version__}")
        raise typer.Exit


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Tuned, generated attention kernels in Triton.

    Start with `attnforge tune`; `attnforge explain` shows what a call will run.
    """


for _name in COMMANDS:
    _listed(_name)


def run(arguments: Sequence[str] | None = None) -> None:
    """What ``attnforge.cli.main`` does once it has seen to Ctrl-C."""
    try:
        app(arguments, prog_name="attnforge")
    except (AttnforgeError, CodegenError) as error:
        _print_error(error)
        raise SystemExit(2) from None


def _print_error(error: Exception) -> None:
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(str(error), markup=False, highlight=False)

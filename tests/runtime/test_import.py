"""What importing costs, and which package may import which."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import attnforge

ROOT = Path(__file__).parents[2]
TOOLS = {"optuna", "typer", "rich", "matplotlib", "filelock", "platformdirs", "torch._dynamo", "attnforge.tuner"}
"""Of the command line and the tuner: calls do without."""

FOLDERS = {
    "attnforge": ROOT / "attnforge",
    "attnforge.codegen": ROOT / "codegen",
    "attnforge.templates": ROOT / "templates",
    "attnforge.tuner": ROOT / "tuner",
    "attnforge.generated": ROOT / "generated",
}
MAY_IMPORT = {
    "attnforge": {"attnforge", "attnforge.codegen", "attnforge.generated"},
    "attnforge.codegen": {"attnforge.codegen", "attnforge.templates"},
    "attnforge.templates": {"attnforge.templates"},
    "attnforge.tuner": {"attnforge.tuner", "attnforge", "attnforge.codegen"},
    "attnforge.generated": set(),
}
"""The arrows between our packages; only the command line, lazily, goes from attnforge to the tuner."""
MAY_NOT_IMPORT = {
    "attnforge": {"optuna"},
    "attnforge.codegen": {"torch", "triton", "numpy", "os", "time", "random"},
    "attnforge.templates": {"torch", "triton"},
}
"""Modules of others that a package does without."""


def imported_by(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            # `from attnforge import codegen` imports a package by its name.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(module: str) -> str | None:
    """The one of our packages that a module belongs to."""
    ours = [package for package in FOLDERS if f"{module}.".startswith(f"{package}.")]
    return max(ours, key=len, default=None)


def wrong_imports(package: str, source: str, in_command_line: bool = False) -> list[str]:
    allowed = MAY_IMPORT[package] | ({"attnforge.tuner"} if in_command_line else set())
    found = []
    for module in imported_by(source):
        theirs = MAY_NOT_IMPORT.get(package, set())
        owner = package_of(module)
        if (owner is not None and owner not in allowed) or any(f"{module}.".startswith(f"{name}.") for name in theirs):
            found.append(module)
    return found


@pytest.mark.parametrize("package", FOLDERS)
def test_packages_import_along_the_arrows_only(package: str) -> None:
    files = sorted(FOLDERS[package].rglob("*.py"))
    assert files
    for file in files:
        in_command_line = FOLDERS["attnforge"] / "cli" in file.parents
        assert wrong_imports(package, file.read_text(), in_command_line) == [], file


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("attnforge", "import attnforge.tuner"),
        ("attnforge", "from attnforge import tuner"),
        ("attnforge", "def f():\n    from attnforge.tuner.session import tune"),
        ("attnforge", "import optuna.samplers"),
        ("attnforge", "from attnforge.templates import x"),
        ("attnforge.codegen", "from attnforge.errors import AttnforgeError"),
        ("attnforge.codegen", "from torch import nn"),
        ("attnforge.codegen", "import attnforge"),
        ("attnforge.tuner", "import attnforge.generated"),
        ("attnforge.generated", "from attnforge import attention"),
    ],
)
def test_an_import_against_the_arrows_is_noticed(package: str, source: str) -> None:
    assert wrong_imports(package, source)


def modules_after(statements: str) -> set[str]:
    script = f"import sys\n{statements}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_importing_attnforge_imports_nothing_else() -> None:
    loaded = modules_after("import attnforge")
    assert not loaded & (TOOLS | {"torch", "triton", "jinja2", "attnforge.codegen"})


def test_importing_attention_imports_torch_and_triton_but_no_tools() -> None:
    loaded = modules_after("from attnforge import attention")
    assert {"torch", "triton", "attnforge.ops"} <= loaded
    # torch may bring some of them along.
    assert not loaded & ((TOOLS | {"jinja2"}) - modules_after("import torch, triton"))


def test_every_public_name_is_there() -> None:
    for name in attnforge.__all__:
        assert getattr(attnforge, name) is not None
    assert set(dir(attnforge)) >= set(attnforge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'atention'"):
        attnforge.atention  # noqa: B018

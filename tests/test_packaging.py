"""The two tables of pyproject and the links of .typing/ against the folders: what is forgotten there is not shipped."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
PACKAGE_DIR: dict[str, str] = SETUPTOOLS["package-dir"]


def test_every_folder_with_modules_is_a_listed_package() -> None:
    found = set()
    for package, folder in PACKAGE_DIR.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *below)))
    assert SETUPTOOLS["packages"] == sorted(found)


def test_no_folder_of_modules_lacks_its_init() -> None:
    """But for generated/kernels, whose modules are loaded by kernels.load() alone."""
    for folder in PACKAGE_DIR.values():
        for module in (ROOT / folder).rglob("*.py"):
            if not module.is_relative_to(ROOT / "generated" / "kernels"):
                assert (module.parent / "__init__.py").exists(), module


def test_every_data_file_matches_a_listed_pattern() -> None:
    for package, folder in PACKAGE_DIR.items():
        top = ROOT / folder
        patterns = SETUPTOOLS["package-data"].get(package, [])
        shipped = {path for pattern in patterns for path in top.glob(pattern)}
        for path in top.rglob("*"):
            in_package = (path.parent / "__init__.py").exists() and path.suffix == ".py"
            if path.is_file() and "__pycache__" not in path.parts and not in_package:
                assert path in shipped, f"{path.relative_to(ROOT)} would not be in the wheel"


def test_typing_links_mirror_the_package() -> None:
    links = ROOT / ".typing" / "attnforge"
    wanted = {path.name: path for path in (ROOT / "attnforge").iterdir() if path.name != "__pycache__"}
    wanted |= {package.split(".")[1]: ROOT / folder for package, folder in PACKAGE_DIR.items() if "." in package}
    for name, path in wanted.items():
        command = f"ln -s ../../{path.relative_to(ROOT)} .typing/attnforge/{name}"
        assert (links / name).is_symlink(), f"missing: {command}"
        assert (links / name).resolve() == path
        assert not (links / name).readlink().is_absolute(), f"breaks in a clone: {command}"
    assert {link.name for link in links.iterdir()} == set(wanted)


def test_the_version_is_said_once() -> None:
    import attnforge

    assert PYPROJECT["project"]["version"] == attnforge.__version__

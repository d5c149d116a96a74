"""Compares the attnforge that this Python imports with a checkout: a wheel must hold every file of its packages.

Usage: python compare_installed.py CHECKOUT
"""

import sys
import tomllib
from importlib.resources import files
from pathlib import Path


def main(checkout: Path) -> int:
    """Print every difference, and return how many there are."""
    tables = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"]
    compared, wrong = 0, 0
    for package, folder in tables["package-dir"].items():
        installed = Path(str(files(package)))
        if installed.is_relative_to(checkout):
            print(f"{package} is the checkout's own: run this where the wheel is installed")
            return 1
        for source in sorted((checkout / folder).rglob("*")):
            if source.is_dir() or "__pycache__" in source.parts:
                continue
            copy = installed / source.relative_to(checkout / folder)
            compared += 1
            if not copy.is_file() or copy.read_bytes() != source.read_bytes():
                print(f"{'differs' if copy.is_file() else 'missing'}: {copy}")
                wrong += 1
    print(f"{compared} files of the checkout's packages, {wrong} of them not in the wheel as they are")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]).resolve()), 1))

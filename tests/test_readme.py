"""The README and the docs: every command and snippet runs, every link leads somewhere, every figure was measured.

Commands run as they stand, in an empty folder with caches of its own; CHEAP says which run in a form that needs neither
a GPU nor minutes, so a new command is run as it is until it is listed there.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from attnforge.bench.results import write_results
from attnforge.cache.store import TunedCacheStore
from attnforge.settings import Settings
from attnforge.target import Target
from tests.bench.invented_results import make_results
from tests.runtime.cache.entries import measured

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
CHEAP = {
    "make install": f"make -n -C {ROOT} install",
    "make lint": f"make -n -C {ROOT} lint",
    "make test": f"make -n -C {ROOT} test",
    "make test-slow": f"make -n -C {ROOT} test-slow",
    "make tune": f"make -n -C {ROOT} tune",
    "attnforge tune --head-dim 128 --causal --quick": (
        "attnforge tune --head-dim 128 --causal --quick --target sm_80 --pass forward"
    ),
    # Two machines and a database are tests/tuner/test_shared_storage.py's.
    "attnforge tune --storage postgresql://me@host/tune": "attnforge tune --help",
    "attnforge tune --target sm_80 --quick": "attnforge tune --target sm_80 --quick --head-dim 32 --causal",
    "attnforge explain --shape 4,16,4096,128 --causal": (
        "attnforge explain --shape 4,16,4096,128 --causal --target sm_90"
    ),
    "attnforge bench --quick": "attnforge bench --help",
}
TUNED = ("attnforge report", "attnforge cache diff", "attnforge cache merge")
"""Commands that begin so run after a tune, beside copies of its cache from other machines."""
SLOW = {"attnforge tune --head-dim 128 --causal --quick", "attnforge tune --target sm_80 --quick"}
SMALL = {
    'device="cuda"': 'device="cpu"',
    "torch.bfloat16": "torch.float16",  # whose dot the interpreter has right
    "(4, 16, 4096, 128": "(1, 4, 40, 128",
    "(4, 4, 4096, 128": "(1, 1, 40, 128",
}


def blocks(language):
    """Every fenced block of a language, by the document that it is in."""
    for document in DOCUMENTS:
        for block in re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
            yield document.name, block


def commands():
    for document, block in blocks("sh"):
        for line in block.splitlines():
            if command := line.split(" #")[0].strip():
                marks = [pytest.mark.slow] if command in SLOW else []
                yield pytest.param(command, id=f"{document}: {command}", marks=marks)


def run(command, folder, **environment):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ATTNFORGE_CACHE_DIR": str(folder / "user"),
        **environment,
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def prepare_tuned_caches(command, folder):
    target = Target.current() if torch.cuda.is_available() else Target.for_arch("sm_90")
    path = TunedCacheStore(Settings(folder / "user")).write(target, [measured()])
    for name in re.findall(r"\w+\.yaml", command.split(" --into ")[0]):
        shutil.copy(path, folder / name)


@pytest.mark.parametrize("command", list(commands()))
def test_command_runs(command, tmp_path):
    if command.startswith(TUNED):
        prepare_tuned_caches(command, tmp_path)
    run(["bash", "-c", CHEAP.get(command, command)], tmp_path)


def test_cheap_forms_are_of_commands_that_are_documented():
    documented = {parameter.values[0] for parameter in commands()}
    assert set(CHEAP) | SLOW <= documented


@pytest.mark.parametrize("snippet", [pytest.param(block, id=name) for name, block in blocks("python")])
def test_snippet_runs_in_the_interpreter(snippet, tmp_path):
    for large, small in SMALL.items():
        assert large in snippet
        snippet = snippet.replace(large, small)
    check = "\nassert out.shape == (1, 4, 40, 128) and q.grad.isfinite().all() and q.grad.any()\n"
    run([sys.executable, "-c", snippet + check], tmp_path, TRITON_INTERPRET="1")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    paths = re.findall(r"`((?:attnforge|codegen|templates|tuner|tests|docs|benchmarks|examples)/[\w./]*)`", text)
    for link in links:
        assert link.startswith("https://") or (document.parent / link).exists(), link
    for path in paths:
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def readme_table():
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "benchmarks" / "readme_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_those_of_the_newest_committed_run(readme_table, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["readme_table.py", "--check"])
    assert readme_table.main() == 0, capsys.readouterr().out
    assert (ROOT / readme_table.PICTURE).exists()


@pytest.fixture
def checkout(readme_table, monkeypatch, tmp_path):
    """A checkout with two committed runs, the older one faster for ours."""
    (tmp_path / "README.md").write_text(f"before\n{readme_table.BEGIN}\nstale 99.99 ×\n{readme_table.END}\nafter\n")
    new = make_results()
    faster = make_results(lambda pass_, cell, name: 900.0 if name == "attnforge" else 100.0)
    old = msgspec.structs.replace(faster, created="2020-01-01T00:00:00+00:00")
    write_results(new, tmp_path / "benchmarks" / "results" / "new" / "results.json")
    write_results(old, tmp_path / "benchmarks" / "results" / "old" / "results.json")
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    return tmp_path


def test_the_section_is_written_from_the_newest_run(readme_table, checkout, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["readme_table.py"])
    assert readme_table.main() == 0
    text = (checkout / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| **1.50 ×** | SDPA flash (FA2), forward | 1.50 × |" in text
    assert "| backward | 128 | causal | 16384 | **450** | 300 | 500 | 400 | 600 |" in text
    assert "99.99" not in text
    assert "results/new/results.json" in text
    assert (checkout / "docs" / "speed.png").exists()
    monkeypatch.setattr(sys, "argv", ["readme_table.py", "--check"])
    assert readme_table.main() == 0


@pytest.mark.parametrize("edit", ["1.51 ×", ""])
def test_an_edited_figure_is_noticed(readme_table, checkout, monkeypatch, edit):
    monkeypatch.setattr(sys, "argv", ["readme_table.py"])
    readme_table.main()
    readme = checkout / "README.md"
    readme.write_text(readme.read_text().replace("1.50 ×", edit, 1))
    monkeypatch.setattr(sys, "argv", ["readme_table.py", "--check"])
    assert readme_table.main() == 1

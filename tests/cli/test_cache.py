import re
from pathlib import Path

import pytest
import torch

from attnforge.cache.document import encode
from attnforge.cache.store import TunedCacheStore
from attnforge.cli import main
from attnforge.settings import Settings
from attnforge.target import Target
from tests.runtime.cache.entries import ARCH, GPU, a_cache, measured, put, unfit


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNFORGE_CACHE_DIR", str(tmp_path / "user"))
    return TunedCacheStore(Settings.from_environment())


@pytest.fixture
def run(capsys):
    """Runs a command line; its exit status, stdout and stderr."""

    def command(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["cache", *map(str, arguments)])
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return command


def test_path_is_the_file_that_is_written_and_looked_up_first(caches, run):
    status, out, err = run("path", "--target", "sm_90")
    assert (status, err) == (0, "")
    assert out == f"{caches.write(ARCH, [measured()])}\n"
    assert Path(out.strip()) == caches.load(ARCH)[0].path


def test_path_is_of_this_gpu_when_no_target_is_named(caches, run, monkeypatch):
    monkeypatch.setattr(Target, "current", lambda: GPU)
    assert run("path")[1] == f"{caches.path(GPU)}\n"


def test_path_says_what_to_do_without_a_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = run("path")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: .*--target sm_90\n", err)


def test_an_unknown_target_is_one_line_that_lists_the_known_ones(run):
    status, out, err = run("path", "--target", "[bold]sm_91")
    assert (status, out) == (2, "")
    assert err.startswith("error: target '[bold]sm_91' is not known; known targets: sm_80,")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("caches")
def test_show_of_nothing_says_how_to_get_something(run):
    status, out, _ = run("show", "--target", "gfx942")
    assert status == 0
    assert "attnforge tune" in out


def test_show_lists_entries_with_their_numbers_and_what_they_were_found_with(caches, run):
    path = caches.write(ARCH, [measured(64), measured(128)])
    status, out, _ = run("show", "--target", "sm_90")
    assert status == 0
    assert str(path) in out
    (row,) = [line for line in out.splitlines() if "forward_d64_causal" in line]
    for cell in ("bfloat16_bh64_q4096_k4096", "portable/m128_n64_w8_s3_chunks", "measured", "1.2500", "1.20x"):
        assert cell in row
    assert re.search(r"2 of them found with .*templates 0123456789abcdef, not .*: they serve, but not as exact", out)


def test_show_names_a_refused_cache_and_goes_on(caches, run):
    caches.write(GPU, [measured()])
    bad = put(caches.path(ARCH), b"garbage")
    status, out, err = run("show")
    assert status == 0
    assert f"{bad} is refused" in err
    assert str(caches.path(GPU)) in out


def test_verify_accepts_what_was_written_and_all_that_is_shipped(caches, run):
    path = caches.write(ARCH, [measured(64), measured(128)])
    status, out, err = run("verify")
    assert (status, err) == (0, "")
    assert f"{path}: accepted, 2 entries for sm_90\n" in out


def test_verify_names_file_and_reason_of_each_refused_cache(caches, run):
    good = caches.write(GPU, [measured()])
    bad = put(caches.path(ARCH), encode(a_cache(measured()))[:-1])
    foreign = put(good.with_name("sm_80.yaml"), encode(a_cache(measured())))
    status, out, err = run("verify")
    assert status == 1
    assert f"{good}: accepted" in out
    assert re.search(f"{bad} is refused: .*truncated", err)
    assert re.search(f"{foreign} is refused: .*made for sm_90", err)


def test_verify_takes_files_from_anywhere(run, tmp_path):
    good = put(tmp_path / "one" / "two" / "mine.yaml", encode(a_cache(measured())))
    shared = put(tmp_path / "shared" / "two" / "mine.yaml", encode(a_cache(measured())))
    shared.parent.chmod(0o777)
    missing = tmp_path / "missing.yaml"
    assert run("verify", good)[0] == 0
    status, out, err = run("verify", good, shared, missing)
    assert status == 1
    assert f"{good}: accepted" in out
    assert re.search(f"{shared} is refused: .*written by others", err)
    assert f"{missing}: there is no such file" in err


def test_entries_that_only_other_templates_can_use_are_shown_and_counted(caches, run):
    path = put(caches.path(GPU), encode(a_cache(measured(64), target=GPU, unfit=(unfit(96),))))
    assert f"{path}: accepted, 2 entries for {GPU.slug}, 1 of them for other templates alone" in run("verify", path)[1]
    _, out, _ = run("show")
    assert "portable/(of other templates)" in out
    assert "they do not serve (config has unknown fields: cluster)" in out

from pathlib import Path

import pytest
import torch

from attnforge.cli import main

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNFORGE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def code_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as exit_:
        main(["tune", *arguments])
    return exit_.value.code


@without_gpu
def test_without_a_gpu_it_names_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of() == 2
    assert "--target sm_90" in capsys.readouterr().err
    assert not list(folder.rglob("*.yaml"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "sm_13"], "known targets: sm_80"),
        (["--head-dim", "100"], "a multiple of 8 from 16 to 256"),
        (["--head-dim-v", "64"], "--head-dim-v needs --head-dim"),
        (["--budget", "soon"], "90s, 5m or 1h"),
        (["--budget", "0m"], "90s, 5m or 1h"),
        (["--seqlen", "0"], "--seqlen"),
        (["--target", "sm_90", "--budget", "5m"], "leave them out with --target"),
        (["--target", "sm_90", "--schedule", "portable"], "leave them out with --target"),
        (["--schedule", "fast"], "portable"),
    ],
)
def test_bad_options_say_what_is_supported(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*arguments) == 2
    assert words in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--help") == 0
    shown = capsys.readouterr().out
    for words in ("--target sm_90 --quick", "--head-dim 72", "Ctrl-C is safe"):
        assert words in shown


def test_schedules_that_have_no_kernels_of_the_pass_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--schedule", "hopper", "--pass", "backward", "--head-dim", "64") == 2
    assert "schedule hopper has no backward" in capsys.readouterr().err

import sys
from pathlib import Path

import pytest
import torch

from attnforge.cache.store import TunedCacheStore
from attnforge.cli import main
from attnforge.cli import tune as command
from attnforge.codegen import AttentionSpec, DType, Pass, Schedule
from attnforge.codegen.schedules import DEFINITIONS
from attnforge.compilation import CompilePool
from attnforge.dispatch.decision import DecisionKind, decide
from attnforge.kernels import Kernels
from attnforge.settings import Settings
from attnforge.tuner.task import self_attention
from tests.tuner.fake_device import TARGET, Script
from tests.tuner.fake_tune import fake_command, measurer_of

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
        (["--target", "sm_90", "--budget", "5m"], "error: --budget is about measuring: leave it out with --target"),
        (["--target", "sm_90", "--schedule", "portable", "--fresh"], "error: --fresh and --schedule are about"),
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
    for words in ("--target sm_80 --quick", "--head-dim 72", "Ctrl-C is safe"):
        assert words in shown


def test_help_names_the_defaults_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for default in (
        f"[default: {', '.join(map(str, command.SEQLENS))}]",
        f"[default: {command.TRIALS}; with --target {command.COMPILATIONS}]",
        f"[default: {command.BUDGET_S / 60:.0f}m]",
        f"{command.QUICK_TRIALS} trials and {command.QUICK_BUDGET_S / 60:.0f}m; with --target"
        f" {command.QUICK_COMPILATIONS} trials",
    ):
        assert default in text


def test_help_is_whole_at_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert code_of("--help") == 0
    assert "…" not in capsys.readouterr().out


@pytest.fixture
def fakes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Only compilers, kernels and times are invented."""
    script = Script(str(folder))
    monkeypatch.setattr(command, "Measurer", lambda *_: measurer_of(script))
    monkeypatch.setattr(
        command, "CompilePool", lambda _, s=None: CompilePool(1, s or 60.0, fake_command("fake_compiler.py", script))
    )
    return script


ONE = ("--head-dim", "32", "--causal", "--pass", "forward", "--seqlen", "1024", "--jobs", "1")


def test_where_the_winners_are_is_said_when_something_was_written(
    fakes: Script, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*ONE, "--trials", "2") in (0, None)
    said = capsys.readouterr().out
    assert f"Kept in {folder / 'tuned'}" in said
    assert "`attnforge report` shows it" in said
    assert code_of(*ONE, "--trials", "2") in (0, None)
    assert "Kept in" not in capsys.readouterr().out, "an earlier run had done it all"
    fakes.faults = {"*": "wrong"}
    fakes.write()
    assert code_of(*ONE, "--trials", "2", "--fresh") == 2
    assert "Kept in" not in capsys.readouterr().out


def test_a_budget_that_ended_searches_says_so_and_how_to_go_on(
    fakes: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*ONE, "--budget", "0.01s") in (0, None)
    assert "ended 1 of 1 search early: the same command goes on with them, `--budget 1s`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("early", "left", "budget_s", "words"),
    [
        (3, 0, 420.0, "The budget ended 3 of 4 searches early: the same command goes on with them, `--budget 14m`"),
        (0, 1, 5.0, "The budget left 1 of 4 specs without a turn: the same command goes on with them, `--budget 10s`"),
        (2, 1, 90.0, "ended 2 of 4 searches early and left 1 of 4 specs without a turn: the same"),
    ],
)
def test_searches_that_ended_early_and_specs_without_a_turn_are_told_together(
    early: int, left: int, budget_s: float, words: str
) -> None:
    assert words in command.out_of_time(early, left, 4, budget_s)


def test_the_report_of_a_shared_storage_and_of_a_target_is_named_with_its_option(
    fakes: Script, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{folder}/shared.db"
    assert code_of(*ONE, "--trials", "2", "--storage", url) in (0, None)
    assert f"`attnforge report --storage {url}` shows it" in capsys.readouterr().out
    assert code_of(*ONE, "--trials", "2", "--target", "sm_80") in (0, None)
    assert "`attnforge report --target sm_80` shows it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "studies. The same command goes on from there."), (["--target", "sm_80"], "The same command starts over.")],
)
def test_an_interruption_says_what_becomes_of_the_rest(
    fakes: Script,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    for session in (command.Session, command.PredictionSession):
        monkeypatch.setattr(session, "run", lambda self: self.pool.close())
    assert code_of(*ONE, *arguments) == 130
    said = capsys.readouterr().out
    assert "Interrupted: 0 of 1 spec is done and written" in said
    assert words in said


def test_a_size_that_is_not_shipped_is_tuned_and_can_be_called_afterwards(fakes: Script, folder: Path) -> None:
    settings = Settings(folder)
    specs = [
        AttentionSpec(pass_=pass_, head_dim=72, head_dim_v=72, causal=causal)
        for pass_ in Pass
        for causal in (False, True)
    ]
    kernels = Kernels.installed(settings)
    assert not any(kernels.is_generated(spec) for spec in specs)
    assert code_of("--head-dim", "72", "--seqlen", "1024", "--trials", "3", "--jobs", "1") in (0, None)
    problem = self_attention(72, 1024, DType.BF16)
    for spec in specs:
        kernels.check_generated(spec)
        decision = decide(spec, problem, TARGET, TunedCacheStore(settings).load(TARGET))
        assert decision.kind is DecisionKind.EXACT
        assert kernels.load(decision.variant).__file__


def test_what_cannot_be_predicted_is_said_and_generated_where_it_is_not_shipped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("--target", "sm_90", "--head-dim", "128", "--causal", "--pass", "forward") in (0, None)
    shown = capsys.readouterr().out
    assert "only a tune on the GPU itself can improve: forward_d128_causal" in shown
    assert not list(folder.rglob("*.py"))
    assert code_of("--target", "sm_90", "--head-dim", "72", "--causal", "--pass", "forward") in (0, None)
    assert "Generated, with their default configs: forward_d72_causal" in capsys.readouterr().out
    spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=72, head_dim_v=72, causal=True)
    Kernels.installed(Settings(folder)).check_generated(spec)
    assert not list(folder.rglob("*.yaml")), "there is no entry"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--storage", "nonsense"], "postgresql://user@host/database"),
        (["--storage", "sqlite:////tmp/x", "--fresh"], "name a new database"),
        (["--storage", "sqlite:////tmp/x", "--target", "sm_90"], "leave it out with --target"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_before_anything_starts(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*arguments) == 2
    assert words in capsys.readouterr().err


def test_a_missing_driver_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert code_of("--storage", "postgresql://me:secret@host/tune") == 2
    said = capsys.readouterr().err
    assert 'pip install "attnforge[postgresql]"' in said
    assert "secret" not in said


def test_schedules_that_have_no_kernels_of_the_pass_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(DEFINITIONS, (Schedule.HOPPER, Pass.BACKWARD))
    assert code_of("--schedule", "hopper", "--pass", "backward", "--head-dim", "64") == 2
    assert "schedule hopper has no backward" in capsys.readouterr().err

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
    for words in ("--target sm_80 --quick", "--head-dim 72", "Ctrl-C is safe"):
        assert words in shown


def test_a_size_that_is_not_shipped_is_tuned_and_can_be_called_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake device: only compilers, kernels and times are invented."""
    script = Script(str(folder))
    monkeypatch.setattr(command, "Measurer", lambda: measurer_of(script))
    monkeypatch.setattr(
        command, "CompilePool", lambda jobs, s: CompilePool(1, s, fake_command("fake_compiler.py", script))
    )
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
        (["--storage", "sqlite:////tmp/x", "--target", "sm_90"], "leave them out with --target"),
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

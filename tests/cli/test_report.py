import pytest

from attnforge.cache.store import TunedCacheStore
from attnforge.cli import main
from attnforge.codegen import DType
from attnforge.errors import NoGpuError
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.task import self_attention
from tests.runtime.cache.entries import ARCH, GPU, measured
from tests.tuner.report.fabricated import H200, a_spec, record_study


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    def raises():
        raise NoGpuError

    monkeypatch.setenv("ATTNFORGE_CACHE_DIR", str(tmp_path / "user"))
    monkeypatch.setattr(Target, "current", raises)
    monkeypatch.chdir(tmp_path)
    return Settings.from_environment()


@pytest.fixture
def run(capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["report", *map(str, arguments)])
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return command


def test_nothing_tuned_is_one_line_that_says_what_to_do(run, tmp_path):
    for arguments in ([], ["--target", "sm_90"]):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert "run `attnforge tune` first" in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_page_is_written_where_it_was_asked_for(run, settings, tmp_path):
    record_study(settings, a_spec(), self_attention(64, 1024, DType.BF16), trials=2)
    assert run() == (0, "report.html: open it in a browser\n", "")
    assert "NVIDIA" not in (tmp_path / "report.html").read_text()
    TunedCacheStore(settings).write(H200, [measured()])
    assert run("--out", tmp_path / "h200.html")[0] == 0
    assert "NVIDIA H200" in (tmp_path / "h200.html").read_text()


def test_a_target_is_named_by_its_files_or_its_arch(run, settings, tmp_path):
    TunedCacheStore(settings).write(GPU, [measured()])
    for name in ("sm_90", "sm_90-nvidia-h200"):
        assert run("--target", name)[0] == 0
    status, _, err = run("--target", "sm_80")
    assert status == 2
    assert "--target takes what was: sm_90-nvidia-h200" in err


def test_of_several_targets_this_gpus_is_meant_or_one_is_named(run, settings, tmp_path, monkeypatch):
    for target in (GPU, ARCH):
        TunedCacheStore(settings).write(target, [measured()])
    status, _, err = run()
    assert status == 2
    assert "name one with --target: sm_90, sm_90-nvidia-h200" in err
    monkeypatch.setattr(Target, "current", lambda: GPU)
    assert run()[0] == 0
    assert "NVIDIA H200" in (tmp_path / "report.html").read_text()
    assert run("--target", "sm_90")[0] == 0
    assert "NVIDIA H200" not in (tmp_path / "report.html").read_text()


def test_a_place_that_cannot_be_written_is_named(run, settings, tmp_path):
    TunedCacheStore(settings).write(GPU, [measured()])
    status, _, err = run("--out", tmp_path / "missing" / "report.html")
    assert status == 2
    assert "missing/report.html: No such file or directory; --out takes another file" in err


def test_help_teaches(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "--out h200.html" in out

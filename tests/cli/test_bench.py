"""`attnforge bench` from the command line, without a GPU: the guard, bad options, a run with its GPU parts faked."""

import msgspec
import pytest
import torch

from attnforge.bench.results import OURS, Failure, read_results
from attnforge.cli import bench as command
from attnforge.cli import main
from attnforge.codegen import Pass
from tests.bench.invented_results import make_results


def exit_status(*arguments):
    with pytest.raises(SystemExit) as exited:
        main(["bench", *arguments])
    return exited.value.code


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("options", [(), ("--quick",), ("--host",)])
def test_without_a_gpu_it_says_so(options, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_status(*options) == 2
    assert capsys.readouterr().err.strip() == (
        "error: attnforge bench measures kernels on a GPU: torch sees none on this machine"
        " (torch.cuda.is_available() is False)"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--peers", "flash,foo"), "'foo': supported: flash, cudnn, flex, fa4"),
        (("--kv-heads", "7"), "--kv-heads 7"),
        (("--seqlen", "0"), "--seqlen 0"),
        (("--head-dim", "5000"), "--head-dim 5000"),
    ],
)
def test_bad_options_are_named(options, named, capsys):
    assert exit_status(*options) == 2
    assert named in capsys.readouterr().err


@pytest.fixture
def run_with(monkeypatch):
    """Replaces the GPU's part of a run; returns what it was asked for."""
    asked = {}

    def install(results):
        def run_bench(cases, passes, implementations, on_cell):
            asked.update(cases=cases, passes=passes, names=[each.name for each in implementations])
            for cell in results.cells:
                on_cell(cell)
            return results

        monkeypatch.setattr(command, "check_gpu", lambda: torch.device("cpu"))
        monkeypatch.setattr(command, "run_bench", run_bench)
        return asked

    return install


def test_a_run_prints_and_writes_everything(run_with, tmp_path, capsys):
    results = make_results()
    asked = run_with(results)
    assert exit_status("--out", str(tmp_path / "out")) == 0
    assert read_results(tmp_path / "out" / "results.json") == results
    assert (tmp_path / "out" / "results.png").stat().st_size > 10_000
    assert len(asked["cases"]) == 18
    assert asked["passes"] == [Pass.FORWARD, Pass.BACKWARD]
    assert asked["names"][:4] == [OURS, "flash", "cudnn", "flex"]
    printed = capsys.readouterr().out
    assert "geometric mean" in printed
    assert "dispatch overhead 10.0 µs; bar 12 µs" in printed


def test_options_narrow_the_run(run_with, tmp_path):
    asked = run_with(make_results())
    options = "--head-dim 96 --head-dim 96 --seqlen 512 --pass backward --causal --dtype float16 --kv-heads 7"
    assert exit_status(*options.split(), "--peers", "cudnn, flash", "--out", str(tmp_path)) == 0
    (case,) = asked["cases"]
    assert (case.head_dim, case.seqlen, case.causal, case.dtype, case.kv_heads) == (96, 512, True, "float16", 7)
    assert asked["passes"] == [Pass.BACKWARD]
    assert asked["names"] == [OURS, "cudnn", "flash"]


def test_quick_is_one_sequence_length(run_with, tmp_path):
    asked = run_with(make_results())
    assert exit_status("--quick", "--peers", "none", "--out", str(tmp_path)) == 0
    assert {case.seqlen for case in asked["cases"]} == {4096}
    assert asked["names"] == [OURS]


def test_the_host_cost_alone_writes_nothing(run_with, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = run_with(make_results())
    assert exit_status("--host") == 0
    assert asked["cases"] == []
    assert "dispatch overhead" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), ("--host",)])
def test_a_host_cost_that_cannot_be_measured_loses_no_cell_and_exits_with_one(run_with, tmp_path, capsys, options):
    lost = Failure(kind="error", reason="RuntimeError: CUDA error")
    run_with(msgspec.structs.replace(make_results(), host_cost=lost))
    assert exit_status("--out", str(tmp_path), *options) == 1
    printed = capsys.readouterr().out
    assert "– dispatch overhead: error: RuntimeError: CUDA error" in printed
    assert "geometric mean" in printed
    assert options or read_results(tmp_path / "results.json").host_cost == lost


def test_a_failure_of_ours_is_written_and_exits_with_one(run_with, tmp_path, capsys):
    run_with(make_results(lambda pass_, cell, name: None if (name, cell) == (OURS, "D64 S1024 full") else 300.0))
    assert exit_status("--out", str(tmp_path)) == 1
    assert (tmp_path / "results.json").exists()
    assert "– attnforge, forward, 1 cell: out of memory" in capsys.readouterr().out

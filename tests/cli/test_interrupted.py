"""Ctrl-C ends a command with 130 and one line, whenever it comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMAND = """
import atexit, sys, time, types
from attnforge.cli import main

def slowly_imported(name):
    print("importing", flush=True)
    try:
        time.sleep(30)
    except BaseException:
        pass
    raise AssertionError("Ctrl-C was swallowed")

def tune() -> None:
    print("running", flush=True)
    time.sleep(30)

def tune_with_workers() -> None:
    import asyncio
    import typer
    from attnforge.tuner.interruption import run_until_interrupted

    async def work():
        try:
            print("running", flush=True)
            await asyncio.sleep(30)
        finally:
            print("cleaning up", flush=True)
            time.sleep(1)
            print("clean", flush=True)

    if not run_until_interrupted(work()):
        print("told", flush=True)
        time.sleep(1)
        raise typer.Exit(130)

def shut_down():
    print("shutting down", flush=True)
    time.sleep(1)
"""


@contextmanager
def started(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupt_after(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert any(each == f"{line}\n" for each in process.stdout)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)


def test_while_imports_swallow_exceptions() -> None:
    program = f"{COMMAND}\nimport attnforge.cli.app as app\napp.import_module = slowly_imported\nmain(['tune'])"
    with started(program) as process:
        interrupt_after(process, "importing")
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "interrupted\n")


def test_in_a_command_and_again_while_python_shuts_down() -> None:
    program = f"""{COMMAND}
sys.modules["attnforge.cli.tune"] = types.SimpleNamespace(tune=tune)
atexit.register(shut_down)
main(["tune"])"""
    with started(program) as process:
        interrupt_after(process, "running")
        interrupt_after(process, "shutting down")
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.parametrize("again", ["cleaning up", "told", "shutting down"])
def test_a_second_one_disturbs_neither_the_clean_up_nor_what_is_told(again: str) -> None:
    program = f"""{COMMAND}
sys.modules["attnforge.cli.tune"] = types.SimpleNamespace(tune=tune_with_workers)
atexit.register(shut_down)
main(["tune"])"""
    with started(program) as process:
        interrupt_after(process, "running")
        interrupt_after(process, again)
        rest, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "")
        lines = ["cleaning up", "clean", "told", "shutting down"]
        assert rest.splitlines() == lines[lines.index(again) + 1 :]


def test_a_clean_up_that_never_ends_is_cut_off_by_another_one() -> None:
    """A database that no longer answers, say."""
    program = f"""{COMMAND}
from attnforge.tuner import interruption
interruption.PATIENCE_S = 0.2
time.sleep, sleep = lambda seconds: sleep(30), time.sleep
sys.modules["attnforge.cli.tune"] = types.SimpleNamespace(tune=tune_with_workers)
main(["tune"])"""
    with started(program) as process:
        interrupt_after(process, "running")
        interrupt_after(process, "cleaning up")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "\ninterrupted, without waiting any longer\n")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_who_was_told_to_ignore_it_goes_on(signum: signal.Signals) -> None:
    """As nohup and the background jobs of scripts have it."""
    program = f"""{COMMAND}
import signal
signal.signal({int(signum)}, signal.SIG_IGN)
time.sleep, sleep = lambda seconds: sleep(1), time.sleep
import asyncio
asyncio.sleep, asleep = lambda seconds: asleep(1), asyncio.sleep
sys.modules["attnforge.cli.tune"] = types.SimpleNamespace(tune=tune_with_workers)
main(["tune"])"""
    with started(program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signum)
        rest, errors = process.communicate(timeout=20)
        assert (process.returncode, rest, errors) == (0, "cleaning up\nclean\n", "")


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.8, 1.2, 2.0, 4.0])
def test_at_several_moments_of_a_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From the imports of torch to the first compilations."""
    monkeypatch.setenv("ATTNFORGE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = "import sys\nfrom attnforge.cli import main\nprint('begun', flush=True)\nmain(sys.argv[1:])"
    with started(program, "tune", "--target", "sm_80", "--head-dim", "64") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in (shown + errors).lower()
        assert "Traceback" not in errors
        assert not any(name.startswith("attnforge-") for name in os.listdir(tmp_path))

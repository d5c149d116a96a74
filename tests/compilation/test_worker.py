import errno
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from attnforge.compilation import Worker, WorkerNotStartedError
from tests.compilation.test_pool import children_of, is_running, wait_until

SLEEPS = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '600'])"]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def fails(error: OSError) -> Callable[..., None]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        ("tempfile", "mkdtemp", errno.ENOSPC),
        ("pathlib.Path", "open", errno.EMFILE),
        ("socket", "socketpair", errno.EMFILE),
        ("subprocess", "Popen", errno.EAGAIN),
    ],
)
def test_what_keeps_a_worker_from_starting_is_one_error_and_leaves_nothing(
    module: str, name: str, number: int, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{name}", fails(OSError(number, os.strerror(number))))
        with pytest.raises(WorkerNotStartedError) as caught:
            Worker(SLEEPS, os.environ)
    assert os.strerror(number) in str(caught.value)
    assert str(temporary) in str(caught.value)
    assert "TMPDIR" in str(caught.value)
    assert open_files() == before
    assert not list(temporary.iterdir())
    assert not children_of(os.getpid())


def test_a_program_that_is_not_there_is_that_error_too(temporary: Path) -> None:
    before = open_files()
    with pytest.raises(WorkerNotStartedError, match="/no/such/program"):
        Worker(["/no/such/program"], os.environ)
    assert open_files() == before
    assert not list(temporary.iterdir())


def test_a_process_that_has_ended_by_itself_is_noticed_and_its_group_still_is_killed(temporary: Path) -> None:
    before = open_files()
    worker = Worker(SLEEPS, os.environ)
    wait_until(lambda: len(children_of(worker.process_id)) == 1)
    (sleeper,) = children_of(worker.process_id)
    assert not worker.has_ended
    os.kill(worker.process_id, signal.SIGKILL)
    wait_until(lambda: worker.has_ended)
    assert is_running(sleeper)
    worker.close()
    wait_until(lambda: not is_running(sleeper))
    assert worker.has_ended
    assert open_files() == before
    assert not list(temporary.iterdir())

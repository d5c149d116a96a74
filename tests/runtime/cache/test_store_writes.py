"""What is in the way of a write: other files, crashes, other writers."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest

from attnforge.cache import replacement, store
from attnforge.cache.document import encode
from attnforge.cache.store import TunedCacheStore
from attnforge.errors import (
    CacheNotWrittenError,
    CacheRefusedWarning,
    ForeignCacheRefused,
    NewerCacheRefused,
    UntrustedCacheRefused,
)
from attnforge.target import Target
from tests.runtime.cache.entries import ARCH, a_cache, entries_of, measured, put, signed

REPOSITORY = Path(__file__).parents[3]
"""Where child processes find this folder's helpers."""


# Writing over what must not be written over


def test_a_corrupt_file_is_moved_aside_and_named(caches):
    path = caches.path(ARCH)
    for content, aside in ((b"garbage", "sm_90.yaml.refused"), (b"more garbage", "sm_90.yaml.refused-2")):
        put(path, content)
        with pytest.warns(CacheRefusedWarning, match=f"{aside}$"):
            caches.write(ARCH, [measured()])
        assert path.with_name(aside).read_bytes() == content
        assert entries_of(path) == (measured(),)


def test_a_corrupt_file_is_no_hindrance_and_stays_until_there_is_something_to_write(caches):
    path = put(caches.path(ARCH), b"garbage")
    caches.check_writable(ARCH)
    assert path.read_bytes() == b"garbage"
    assert not list(path.parent.glob("*.refused*"))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (signed(b"of the future", file_format=2), NewerCacheRefused),
        (encode(a_cache(measured(), target=Target.for_arch("sm_80"))), ForeignCacheRefused),
    ],
    ids=["newer", "foreign"],
)
def test_a_newer_or_foreign_file_is_left_alone(caches, content, error):
    path = put(caches.path(ARCH), content)
    with pytest.raises(error):
        caches.check_writable(ARCH)
    with pytest.raises(error):
        caches.write(ARCH, [measured(64)])
    assert path.read_bytes() == content
    assert not list(path.parent.glob("*.refused*"))


def test_nothing_is_written_into_a_shared_folder(settings, caches):
    settings.cache_dir.mkdir()
    settings.cache_dir.chmod(0o1777)
    with pytest.raises(UntrustedCacheRefused, match="written by others"):
        caches.write(ARCH, [measured()])
    assert list(settings.cache_dir.iterdir()) == []


def test_nothing_is_written_through_a_symlink(settings, caches, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    settings.tuned_dir.mkdir(parents=True, mode=0o700)
    settings.cache_dir.chmod(0o700)
    caches.path(ARCH).symlink_to(victim)
    with pytest.raises(UntrustedCacheRefused, match="symbolic link"):
        caches.write(ARCH, [measured()])
    assert victim.read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_named(settings, caches):
    settings.cache_dir.write_text("a file in the folder's place")
    with pytest.raises(CacheNotWrittenError, match=str(settings.cache_dir)):
        caches.write(ARCH, [measured()])


@pytest.mark.parametrize("change", [{"noise": ("x" * 300,)}, {"median_ms": float("nan")}, {"trials": 10**30}])
def test_an_entry_that_could_not_be_read_back_is_not_written(caches, change):
    path = caches.write(ARCH, [measured(64)])
    before = path.read_bytes()
    with pytest.raises(CacheNotWrittenError, match="read back"):
        caches.write(ARCH, [measured(128, **change)])
    assert path.read_bytes() == before


def test_a_file_that_would_be_too_big_to_read_is_not_written(caches, monkeypatch):
    monkeypatch.setattr(store, "SIZE_LIMIT", 1000)
    with pytest.raises(CacheNotWrittenError, match="more than is read back"):
        caches.write(ARCH, [measured(64), measured(128)])
    assert caches.load(ARCH) == ()


# Crashes and rivals


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(caches, monkeypatch, step):
    path = caches.write(ARCH, [measured(64)])
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(CacheNotWrittenError, match="No space left"):
            caches.write(ARCH, [measured(128)])
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}


KILLED = """
import os, signal, sys
from pathlib import Path
from attnforge.cache.store import TunedCacheStore
from attnforge.settings import Settings
from tests.runtime.cache.entries import entries_of, ARCH, measured

step, real = sys.argv[1], getattr(os, sys.argv[1])

def die(*args):
    if sys.argv[2] == "after":
        real(*args)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, step, die)
TunedCacheStore(Settings(cache_dir=Path(sys.argv[3]))).write(ARCH, [measured(128)])
"""


@pytest.mark.parametrize(("step", "moment"), [("fsync", "before"), ("replace", "before"), ("replace", "after")])
def test_a_writer_that_is_killed_leaves_the_old_or_the_new_file(caches, settings, step, moment):
    path = caches.write(ARCH, [measured(64)])
    command = [sys.executable, "-c", KILLED, step, moment, str(settings.cache_dir)]
    child = subprocess.run(command, cwd=REPOSITORY, timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert entries_of(path) == ((measured(64),) if moment == "before" else (measured(64), measured(128)))

    caches.write(ARCH, [measured(80)])  # the dead writer's lock does not bind, what it left goes
    assert measured(80) in entries_of(path)
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f"{path.name}.lock"}


@pytest.mark.parametrize("locked", [True, False])
def test_a_write_in_the_middle_of_another_loses_nothing(caches, settings, shipped, monkeypatch, locked):
    """Without the lock the same schedule does lose an entry: the test can fail."""
    if not locked:
        monkeypatch.setattr(filelock, "FileLock", lambda *args, **options: contextlib.nullcontext())
    rival = threading.Thread(target=lambda: TunedCacheStore(settings, shipped).write(ARCH, [measured(64)]))

    def replace_late(path, content):
        if threading.current_thread() is not rival:
            rival.start()
            rival.join(timeout=1.0)  # with the lock it waits for us
        replacement.replace_file(path, content)

    monkeypatch.setattr(store, "replace_file", replace_late)
    path = caches.write(ARCH, [measured(128)])
    rival.join()
    assert {e.spec.head_dim for e in entries_of(path)} == ({64, 128} if locked else {128})


RIVAL = """
import sys
from pathlib import Path
from attnforge.cache.store import TunedCacheStore
from attnforge.settings import Settings
from tests.runtime.cache.entries import entries_of, ARCH, measured

caches = TunedCacheStore(Settings(cache_dir=Path(sys.argv[1])))
for seqlen in (1024, 2048, 4096, 8192):
    caches.write(ARCH, [measured(int(sys.argv[2]), seqlen)])
"""


def test_two_processes_that_write_at_once_lose_no_entry(caches, settings):
    commands = [[sys.executable, "-c", RIVAL, str(settings.cache_dir), head_dim] for head_dim in ("64", "128")]
    rivals = [subprocess.Popen(command, cwd=REPOSITORY) for command in commands]
    assert [rival.wait(timeout=120) for rival in rivals] == [0, 0]
    assert len(entries_of(caches.path(ARCH))) == 8


def test_a_lock_that_is_never_released_is_named(caches, monkeypatch):
    monkeypatch.setattr(store, "LOCK_TIMEOUT", 0.2)
    path = caches.write(ARCH, [measured(64)])
    with (
        filelock.FileLock(f"{path}.lock"),
        pytest.raises(CacheNotWrittenError, match=r"sm_90\.yaml\.lock"),
    ):
        caches.write(ARCH, [measured(128)])

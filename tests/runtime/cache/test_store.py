import contextlib
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import filelock
import msgspec
import pytest

from attnforge.cache import replacement, store
from attnforge.cache.document import decode, encode
from attnforge.cache.store import Origin, TunedCacheStore, merge
from attnforge.errors import (
    CacheNotWrittenError,
    CacheRefusedWarning,
    ForeignCacheRefused,
    NewerCacheRefused,
    UntrustedCacheRefused,
)
from attnforge.settings import Settings
from attnforge.target import Target
from tests.runtime.cache.entries import ARCH, GPU, LATE, a_cache, a_config, measured, predicted, put, signed

REPOSITORY = Path(__file__).parents[3]
"""Where child processes find this folder's helpers."""


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=tmp_path / "user")


@pytest.fixture
def shipped(tmp_path):
    folder = tmp_path / "package" / "tuned"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def caches(settings, shipped):
    return TunedCacheStore(settings, shipped)


def entries_of(path):
    return decode(path.read_bytes(), path).entries


def test_the_path_is_the_first_place_of_a_look_up(caches, settings):
    for target in (ARCH, GPU):
        assert caches.path(target) == caches.places(target)[0].path == settings.tuned_dir / f"{target.slug}.yaml"


def test_nothing_is_there_at_first_and_looking_makes_nothing(caches, settings):
    assert caches.load(GPU) == ()
    assert not settings.cache_dir.exists()


def test_look_up_order_is_the_users_before_the_shipped_and_the_gpus_before_its_archs(caches, settings, shipped):
    for folder in (settings.tuned_dir, shipped):
        for target in (ARCH, GPU):
            put(folder / f"{target.slug}.yaml", encode(a_cache(target=target)))
    found = [(loaded.origin, loaded.cache.target) for loaded in caches.load(GPU)]
    assert found == [(Origin.USER, GPU), (Origin.USER, ARCH), (Origin.SHIPPED, GPU), (Origin.SHIPPED, ARCH)]
    assert [loaded.path for loaded in caches.load(ARCH)] == [
        folder / "sm_90.yaml" for folder in (settings.tuned_dir, shipped)
    ]


def test_shipped_caches_need_no_owner_or_mode(caches, shipped):
    path = put(shipped / "sm_90.yaml", encode(a_cache()))
    path.chmod(0o666)
    shipped.chmod(0o777)
    assert [loaded.path for loaded in caches.load(ARCH)] == [path]


def test_what_is_written_is_loaded(caches):
    path = caches.write(GPU, [measured(64), predicted(128)])
    (loaded,) = caches.load(GPU)
    assert (loaded.path, loaded.origin, loaded.cache.target) == (path, Origin.USER, GPU)
    assert loaded.cache.entries == (measured(64), predicted(128))


def test_only_the_user_can_read_what_is_written(caches, settings):
    path = caches.write(GPU, [measured()])
    assert path.stat().st_mode & 0o777 == 0o600
    assert {folder.stat().st_mode & 0o777 for folder in (settings.cache_dir, settings.tuned_dir)} == {0o700}


def test_without_entries_nothing_is_written(caches):
    assert not caches.write(GPU, []).exists()


# Refusals


def test_a_refused_cache_is_left_out_with_one_warning_and_the_next_one_serves(caches, settings, shipped):
    put(settings.tuned_dir / "sm_90.yaml", b"garbage")
    put(shipped / "sm_90.yaml", encode(a_cache(measured())))
    with pytest.warns(CacheRefusedWarning, match=r"sm_90\.yaml is refused: its first line.*attnforge tune"):
        first = caches.load(ARCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert caches.load(ARCH) == first
    assert [loaded.origin for loaded in first] == [Origin.SHIPPED]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.chmod(0o666), "written by others"),
        (lambda path: path.parent.chmod(0o777), "written by others"),
        (lambda path: path.parent.parent.chmod(0o1777), "written by others"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "truncated"),
        (lambda path: path.write_bytes(encode(a_cache(target=Target.for_arch("sm_80")))), "made for sm_80"),
        (lambda path: path.write_bytes(signed(b"x", file_format=99)), "format is 99"),
        (lambda path: path.write_bytes(b"#" * (store.SIZE_LIMIT + 1)), "more than"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "symbolic link"),
        (lambda path: (path.unlink(), path.mkdir(mode=0o700)), "not a plain file"),
    ],
    ids=["file mode", "folder mode", "shared root", "truncated", "foreign", "newer", "huge", "symlink", "folder"],
)
def test_the_reason_of_a_refusal_is_in_the_warning(caches, spoil, reason):
    path = caches.write(ARCH, [measured()])
    spoil(path)
    with pytest.warns(CacheRefusedWarning, match=f"{path} is refused: .*{reason}"):
        assert caches.load(ARCH) == ()


def test_an_unreadable_folder_is_a_refusal_too(caches, settings):
    settings.cache_dir.write_text("a file in the folder's place")
    with pytest.warns(CacheRefusedWarning, match="cannot be opened"):
        assert caches.load(ARCH) == ()


# Merging


def test_entries_of_other_keys_stay(caches):
    caches.write(GPU, [measured(64)])
    path = caches.write(GPU, [measured(128), measured(64, seqlen=1024)])
    assert {e.key for e in entries_of(path)} == {measured(64).key, measured(128).key, measured(64, seqlen=1024).key}


def test_a_measured_entry_is_never_replaced_by_a_predicted_one():
    assert merge([measured()], [predicted(created=LATE)]) == (measured(),)
    assert merge([predicted(created=LATE)], [measured()]) == (measured(),)


def test_of_two_measured_entries_the_newer_stays():
    newer = measured(created=LATE, config=a_config(block_m=64))
    assert merge([measured()], [newer]) == (newer,)
    assert merge([newer], [measured()]) == (newer,)


def test_of_two_as_old_the_one_that_is_written_stays():
    other = measured(config=a_config(block_m=64))
    assert merge([measured()], [other]) == (other,)


def other_toolchain(entry, **changes):
    toolchain = msgspec.structs.replace(entry.toolchain, **changes)
    return msgspec.structs.replace(entry, toolchain=toolchain, created=LATE)


@pytest.mark.parametrize("change", [{"triton": "3.9.0"}, {"templates": "f" * 16}])
def test_entries_of_another_toolchain_are_not_taken_away(change):
    other = other_toolchain(measured(), **change)
    assert merge([measured()], [other]) == (measured(), other)


def test_a_patch_release_of_triton_is_the_same_toolchain():
    other = other_toolchain(measured(), triton="3.6.1")
    assert merge([measured()], [other]) == (other,)


def test_a_prediction_of_whatever_toolchain_goes_once_it_was_measured():
    assert merge([other_toolchain(predicted(), triton="3.9.0")], [measured()]) == (measured(),)


# Writing over what must not be written over


def test_a_corrupt_file_is_moved_aside_and_named(caches):
    path = caches.path(ARCH)
    for content, aside in ((b"garbage", "sm_90.yaml.refused"), (b"more garbage", "sm_90.yaml.refused-2")):
        put(path, content)
        with pytest.warns(CacheRefusedWarning, match=f"{aside}$"):
            caches.write(ARCH, [measured()])
        assert path.with_name(aside).read_bytes() == content
        assert entries_of(path) == (measured(),)


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


@pytest.mark.parametrize("device", [{"driver": "x" * 300}, {"clock_mhz": float("nan")}, {"clock_mhz": 10**30}])
def test_an_entry_that_could_not_be_read_back_is_not_written(caches, device):
    path = caches.write(ARCH, [measured(64)])
    before = path.read_bytes()
    with pytest.raises(CacheNotWrittenError, match="read back"):
        caches.write(ARCH, [measured(128, device=device)])
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
from tests.runtime.cache.entries import ARCH, measured

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
from tests.runtime.cache.entries import ARCH, measured

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


def test_a_good_cache_makes_no_warning(caches):
    caches.write(ARCH, [measured()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(caches.load(ARCH)) == 1

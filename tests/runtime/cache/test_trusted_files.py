import os

import pytest

from attnforge.cache.trusted_files import UntrustedFileError, read_trusted


@pytest.fixture
def file(tmp_path):
    """A file two folders below the root, as attnforge makes them."""
    path = tmp_path / "root" / "tuned" / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    for own in (path, path.parent, path.parent.parent):
        own.chmod(0o700)
    return path


def read(file):
    return read_trusted(file, root=file.parent.parent, limit=100)


def test_a_file_of_ones_own_is_read(file):
    assert read(file) == b"content"


def test_files_that_others_may_read_are_fine(file):
    file.chmod(0o644)
    file.parent.chmod(0o755)
    assert read(file) == b"content"


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_others_may_write_is_refused(file, level, mode):
    changed = [file, *file.parents][level]
    changed.chmod(mode)
    with pytest.raises(UntrustedFileError, match=f"{changed} can be written by others"):
        read(file)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_symlinks_are_refused(file, level):
    changed = [file, *file.parents][level]
    changed.rename(changed.with_name("elsewhere"))
    changed.symlink_to("elsewhere")
    with pytest.raises(UntrustedFileError, match=f"{changed} is a symbolic link"):
        read(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_belongs_to_another_user_is_refused(file, level):
    changed = [file, *file.parents][level]
    os.chown(changed, 12345, -1)
    with pytest.raises(UntrustedFileError, match=f"{changed} belongs to user 12345"):
        read(file)


def test_what_belongs_to_root_is_fine_for_everybody(file, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if os.stat(file).st_uid == 0:
        assert read(file) == b"content"
    else:
        with pytest.raises(UntrustedFileError, match="belongs to user"):
            read(file)


def test_a_fifo_is_refused_without_waiting_for_its_writer(file):
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(UntrustedFileError, match="not a plain file"):
        read(file)


def test_a_folder_in_the_files_place_is_refused(file):
    file.unlink()
    file.mkdir(mode=0o700)
    with pytest.raises(UntrustedFileError, match="not a plain file"):
        read(file)


def test_a_huge_file_is_refused_unread(file):
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(UntrustedFileError, match="more than 100 bytes"):
        read(file)


def test_a_missing_file_is_told_apart(file):
    file.unlink()
    with pytest.raises(FileNotFoundError):
        read(file)


def test_no_descriptor_is_left_open(file):
    file.chmod(0o777)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(UntrustedFileError):
            read(file)
    assert len(os.listdir("/proc/self/fd")) == before

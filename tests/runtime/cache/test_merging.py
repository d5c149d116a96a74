from pathlib import Path

import pytest

from attnforge.cache.document import encode
from attnforge.cache.merging import (
    CacheNotFoundError,
    Change,
    MergeSource,
    SourceOfAnotherTargetRefused,
    UntrustedSourceRefused,
    explain_merge,
    read_source,
    target_of,
)
from attnforge.cache.schema import Toolchain
from attnforge.cache.store import TunedCacheStore, merge
from attnforge.errors import CorruptCacheRefused, ForeignCacheRefused
from attnforge.settings import Settings
from attnforge.target import Target
from tests.runtime.cache.entries import ARCH, GPU, LATE, a_cache, measured, predicted, put

NEWER_TRITON = Toolchain(triton="3.9.0", torch="2.13.0", templates="0123456789abcdef")
A100 = Target(arch="sm_80", name="NVIDIA A100", sm_count=108, shared_memory=166912)


def source(*entries, name="theirs.yaml", target=GPU):
    return MergeSource(Path(name), a_cache(*entries, target=target))


@pytest.mark.parametrize(
    ("existing", "offered", "change", "reason"),
    [
        ([], measured(), Change.ADDED, "nothing was there"),
        ([measured(64)], measured(), Change.ADDED, "nothing was there"),
        ([measured()], measured(), Change.KEPT, "the same entry"),
        ([measured()], measured(median_ms=1.0, created=LATE), Change.REPLACED, "newer (2026-02-01, not 2026-01-01)"),
        ([measured(created=LATE)], measured(median_ms=1.0), Change.KEPT, "newer (2026-02-01, not 2026-01-01)"),
        ([measured()], measured(median_ms=1.0), Change.REPLACED, "same moment"),
        ([predicted(created=LATE)], measured(), Change.REPLACED, "measured, where there was a prediction"),
        ([measured()], predicted(created=LATE), Change.KEPT, "this one is a prediction"),
        ([measured()], measured(toolchain=NEWER_TRITON), Change.ADDED, "another triton"),
        ([predicted()], measured(toolchain=NEWER_TRITON), Change.REPLACED, "where there was a prediction"),
        ([measured()], predicted(toolchain=NEWER_TRITON), Change.KEPT, "this one is a prediction"),
        ([predicted()], predicted(toolchain=NEWER_TRITON), Change.ADDED, "another triton"),
    ],
)
def test_what_becomes_of_an_entry_and_why(existing, offered, change, reason):
    (record,) = explain_merge(existing, [source(offered)])
    assert record.change is change
    assert reason in record.reason
    assert (record.offered in merge(existing, [offered])) == (change is not Change.KEPT or record.offered in existing)


def test_sources_are_merged_in_order():
    first, second = source(measured(), name="1.yaml"), source(measured(median_ms=1.0, created=LATE), name="2.yaml")
    changes = [(record.source.name, record.change) for record in explain_merge([], [first, second])]
    assert changes == [("1.yaml", Change.ADDED), ("2.yaml", Change.REPLACED)]
    changes = [(record.source.name, record.change) for record in explain_merge([], [second, first])]
    assert changes == [("2.yaml", Change.ADDED), ("1.yaml", Change.KEPT)]


def test_sources_of_two_targets_are_refused():
    with pytest.raises(SourceOfAnotherTargetRefused, match=r"made for sm_80-nvidia-a100.*a run of their own"):
        target_of([source(), source(target=A100)], None)


def test_a_source_that_this_gpu_cannot_use_is_refused():
    assert target_of([source()], GPU) == GPU
    assert target_of([source(target=ARCH)], GPU) == ARCH
    assert target_of([source(target=A100)], None) == A100
    with pytest.raises(
        SourceOfAnotherTargetRefused, match=r"not for sm_90-nvidia-h200.*--into sm_80-nvidia-a100\.yaml"
    ):
        target_of([source(target=A100)], GPU)


def test_a_source_that_others_can_change_is_refused_with_the_way_out(tmp_path):
    path = put(tmp_path / "shared" / "theirs.yaml", encode(a_cache(measured())))
    assert read_source(path).cache.entries == (measured(),)
    path.chmod(0o666)
    with pytest.raises(UntrustedSourceRefused, match=r"written by others.*merge the copy"):
        read_source(path)
    with pytest.raises(CacheNotFoundError, match=r"missing\.yaml"):
        read_source(tmp_path / "missing.yaml")


@pytest.fixture
def caches(tmp_path):
    return TunedCacheStore(Settings(tmp_path / "user"), tmp_path / "shipped")


def test_the_users_own_file_takes_entries_and_says_what_it_held(caches):
    path = caches.path(GPU)
    assert caches.merge_into(path, GPU, [measured(64)]) == ()
    assert caches.merge_into(path, GPU, [measured(128)]) == (measured(64),)
    assert set(map(str, caches.load(GPU)[0].cache.entries)) == {str(measured(64)), str(measured(128))}


def test_the_users_own_file_is_moved_aside_when_it_is_corrupt(caches):
    path = put(caches.path(GPU), b"garbage")
    with pytest.warns(UserWarning, match="refused"):
        caches.merge_into(path, GPU, [measured()])
    assert path.with_name(f"{path.name}.refused").read_bytes() == b"garbage"


def test_another_file_is_never_moved_aside(caches, tmp_path):
    path = put(tmp_path / "work" / "notes.txt", b"precious")
    with pytest.raises(CorruptCacheRefused):
        caches.merge_into(path, GPU, [measured()])
    assert path.read_bytes() == b"precious"


def test_another_file_keeps_to_its_target(caches, tmp_path):
    path = tmp_path / "work" / "team.yaml"
    assert caches.merge_into(path, GPU, [measured()]) == ()
    assert caches.merge_into(path, GPU, [measured(64)]) == (measured(),)
    content = path.read_bytes()
    with pytest.raises(ForeignCacheRefused, match="made for sm_90-nvidia-h200, not for sm_80-nvidia-a100"):
        caches.merge_into(path, A100, [measured(96)])
    assert path.read_bytes() == content
    assert not caches.path(GPU).exists()

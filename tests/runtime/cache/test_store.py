import warnings

import msgspec
import pytest

from attnforge.cache import store
from attnforge.cache.document import decode, encode
from attnforge.cache.store import Origin, merge
from attnforge.errors import CacheRefusedWarning, CorruptCacheRefused, UnknownTargetError
from attnforge.target import Target
from tests.runtime.cache.entries import (
    ARCH,
    GPU,
    LATE,
    a_cache,
    a_config,
    entries_of,
    measured,
    predicted,
    put,
    signed,
    unfit,
)


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


def test_a_good_cache_makes_no_warning(caches):
    caches.write(ARCH, [measured()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(caches.load(ARCH)) == 1


# Entries that only other templates can use


def test_entries_of_other_templates_are_left_out_with_one_warning_and_the_others_serve(caches):
    path = put(caches.path(ARCH), encode(a_cache(measured(64), unfit=(unfit(128), unfit(96)))))
    with pytest.warns(CacheRefusedWarning, match=f"{path}: 2 entries of other templates.*cluster.*attnforge tune"):
        (loaded,) = caches.load(ARCH)
    assert loaded.cache.entries == (measured(64),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caches.load(ARCH)


def test_what_was_tuned_again_since_needs_no_warning(caches):
    tuned_again = measured(toolchain=msgspec.structs.replace(measured().toolchain, templates="f" * 16))
    put(caches.path(ARCH), encode(a_cache(tuned_again, unfit=(unfit(),))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert caches.load(ARCH)[0].cache.entries == (tuned_again,)


def test_a_write_takes_nothing_away_that_other_templates_found(caches):
    path = put(caches.path(ARCH), encode(a_cache(measured(64), unfit=(unfit(128),))))
    caches.write(ARCH, [measured(96)])
    cache = decode(path.read_bytes(), path)
    assert (cache.entries, cache.unfit) == ((measured(64), measured(96)), (unfit(128),))
    assert not list(path.parent.glob("*.refused*"))


def test_a_target_is_named_by_the_stem_of_its_file_or_by_its_arch(caches):
    caches.write(GPU, [measured()])
    assert caches.target(GPU.slug) == GPU
    assert caches.target("sm_80") == Target.for_arch("sm_80")
    with pytest.raises(UnknownTargetError, match=f"known targets: sm_80,.*{GPU.slug}"):
        caches.target("sm_99")


def test_a_target_whose_only_file_is_refused_is_named_with_the_reason(caches):
    put(caches.path(GPU), b"garbage")
    with pytest.raises(CorruptCacheRefused, match="its first line"):
        caches.target(GPU.slug)
    put(caches.path(ARCH), b"garbage")
    assert caches.target("sm_90") == ARCH

import json

import pytest

from attnforge.cache.document import encode
from attnforge.cache.reader import read_users_cache
from attnforge.cache.schema import Toolchain
from attnforge.cache.store import TunedCacheStore
from attnforge.cli import main
from attnforge.errors import NoGpuError
from attnforge.settings import Settings
from attnforge.target import Target
from tests.runtime.cache.entries import ARCH, GPU, LATE, a_cache, a_config, measured, predicted, put, unfit


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNFORGE_CACHE_DIR", str(tmp_path / "user"))
    return TunedCacheStore(Settings.from_environment(), tmp_path / "shipped")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Says which GPU this machine has; none until it is told."""

    def has(target):
        monkeypatch.setattr(Target, "current", lambda: target)

    def raises():
        raise NoGpuError

    monkeypatch.setattr(Target, "current", raises)
    return has


@pytest.fixture
def cache_file(tmp_path):
    def write(name, *entries, target=GPU):
        return put(tmp_path / "shared" / name, encode(a_cache(*entries, target=target)))

    return write


@pytest.fixture
def run(capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["cache", *map(str, arguments)])
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return command


def line_of(out, *words):
    (line,) = [line for line in out.splitlines() if all(word in line for word in words)]
    return line


def test_merge_takes_entries_that_only_other_templates_can_use_along(caches, run, cache_file):
    path = caches.write(GPU, [measured(64)])
    theirs = put(cache_file("theirs.yaml"), encode(a_cache(target=GPU, unfit=(unfit(128),))))
    status, out, err = run("merge", theirs)
    assert (status, err) == (0, "")
    assert "added" in line_of(out, "forward_d128_causal")
    assert "they do not serve (config has unknown fields: cluster)" in out
    cache = read_users_cache(path, root=path.parent)
    assert (cache.entries, cache.unfit) == ((measured(64),), (unfit(128),))


def test_merge_says_what_became_of_each_entry(caches, run, cache_file):
    path = caches.write(GPU, [predicted(64), measured(80), measured(96, created=LATE)])
    theirs = cache_file("theirs.yaml", measured(64), measured(96, median_ms=1.0), measured(128), measured(80))
    status, out, err = run("merge", theirs)
    assert (status, err) == (0, "")
    assert "replaced" in line_of(out, "forward_d64_causal", "measured, where there was a prediction")
    assert "forward_d80_causal" not in out
    assert "Already there, and the same: 1." in out
    assert "kept" in line_of(out, "forward_d96_causal", "newer (2026-02-01, not 2026-01-01)")
    assert "added" in line_of(out, "forward_d128_causal", "nothing was there")
    assert f"{path}: 1 added, 1 replaced, 2 kept\n" in out
    assert "they serve, but not as exact" in out
    kept = {entry.spec.head_dim: entry for entry in caches.load(GPU)[0].cache.entries}
    assert kept == {64: measured(64), 80: measured(80), 96: measured(96, created=LATE), 128: measured(128)}


def test_merge_into_a_file_leaves_the_users_own_alone(caches, run, cache_file, tmp_path, gpu):
    gpu(Target(arch="sm_80", name="NVIDIA A100", sm_count=108, shared_memory=166912))
    one, two, team = cache_file("a.yaml", measured(64)), cache_file("b.yaml", measured(128)), tmp_path / "t" / "t.yaml"
    status, out, _ = run("merge", one, two, "--into", team)
    assert status == 0
    assert f"{team}: 2 added, 0 replaced, 0 kept\n" in out
    assert "a.yaml" in line_of(out, "forward_d64_causal")
    assert "b.yaml" in line_of(out, "forward_d128_causal")
    assert len(read_users_cache(team, root=team.parent).entries) == 2
    assert not list(Settings.from_environment().tuned_dir.glob("*"))


def test_paths_may_be_relative(run, cache_file, monkeypatch):
    theirs = cache_file("theirs.yaml", measured())
    monkeypatch.chdir(theirs.parent)
    assert run("merge", "theirs.yaml", "--into", "team.yaml")[0] == 0
    assert run("merge", "theirs.yaml", "--into", "../shared/team.yaml")[0] == 0
    assert run("diff", "theirs.yaml", "team.yaml")[0] == 0


def test_merge_refuses_another_target_and_writes_nothing(caches, run, cache_file, gpu):
    other = cache_file("a100.yaml", measured(), target=Target.for_arch("sm_80"))
    mine = cache_file("mine.yaml", measured())
    for has, arguments, words in (
        (GPU, [other], "--into sm_80.yaml"),
        (None, [mine, other], "a run of their own"),
        (None, [mine, other, "--into", mine], "a run of their own"),
    ):
        if has:
            gpu(has)
        status, out, err = run("merge", *arguments)
        assert (status, out) == (2, "")
        assert "is refused: it was made for sm_80, not for sm_90-nvidia-h200" in err
        assert words in err
        assert err.count("\n") == 1
    assert not caches.path(GPU).exists()
    assert not caches.path(Target.for_arch("sm_80")).exists()


def test_merge_of_an_archs_predictions_serves_its_gpus(caches, run, cache_file, gpu):
    gpu(GPU)
    assert run("merge", cache_file("sm_90.yaml", predicted(), target=ARCH))[0] == 0
    assert [loaded.path for loaded in caches.load(GPU)] == [caches.path(ARCH)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated"),
        (lambda path: path.chmod(0o666), "merge the copy"),
        (lambda path: path.unlink(), "there is no file"),
    ],
)
def test_one_bad_source_stops_the_merge(caches, run, cache_file, spoil, words):
    good, bad = cache_file("good.yaml", measured(64)), cache_file("bad.yaml", measured(128))
    spoil(bad)
    status, out, err = run("merge", good, bad)
    assert (status, out) == (2, "")
    assert str(bad) in err
    assert words in err
    assert not caches.path(GPU).exists()


def test_diff_of_the_same_is_nothing(run, cache_file):
    status, out, _ = run("diff", cache_file("a.yaml", measured()), cache_file("b.yaml", measured(created=LATE)))
    assert status == 0
    assert "The same in both." in out


def test_diff_shows_what_only_one_has_and_what_differs(run, cache_file):
    one = cache_file("a.yaml", measured(64), measured(80), measured(96))
    two = cache_file("b.yaml", measured(80, median_ms=1.0, gain=1.5, config=a_config(64)), measured(96), measured(128))
    status, out, _ = run("diff", one, two)
    assert status == 1
    only_a, rest = out.split("Only in A")[1].split("Only in B")
    only_b, different = rest.split("Different")
    assert "forward_d64_causal" in only_a
    assert "forward_d128_causal" in only_b
    assert line_of(different, "block_m").split()[-2:] == ["128", "64"]
    assert line_of(different, "median_ms").split()[-2:] == ["1.2500", "1.0000"]
    assert line_of(different, "gain").split()[-2:] == ["1.20x", "1.50x"]
    assert "1 entries are the same in both." in different


def test_diff_for_machines(run, cache_file):
    newer = Toolchain(triton="3.9.0", torch="2.13.0", templates="0123456789abcdef")
    one = cache_file("a.yaml", measured(64), measured(80), measured(96))
    two = cache_file("b.yaml", measured(80, config=a_config(64)), measured(96, toolchain=newer))
    status, out, _ = run("diff", one, two, "--json")
    found = json.loads(out)
    assert status == 1
    assert found["a"] == {"path": str(one), "target": "sm_90-nvidia-h200", "entries": 3}
    assert [entry["spec"] for entry in found["only_in_a"]] == ["forward_d64_causal"]
    assert found["only_in_b"] == []
    config, triton = found["different"]
    assert (config["config"]["a"]["block_m"], config["config"]["b"]["block_m"]) == (128, 64)
    assert triton["triton"] == {"a": "3.6.0", "b": "3.9.0"}
    assert found["same"] == 0
    assert found["same_target"] is True


def test_diff_tells_targets_apart(run, cache_file):
    status, out, _ = run("diff", cache_file("a.yaml", measured()), cache_file("b.yaml", measured(), target=ARCH))
    assert status == 1
    assert "The targets differ" in out


def test_diff_with_trouble_exits_2(run, cache_file, tmp_path):
    good = cache_file("a.yaml", measured())
    bad = put(tmp_path / "shared" / "b.yaml", b"garbage")
    for other, words in ((bad, "is refused"), (tmp_path / "c.yaml", "there is no file")):
        status, out, err = run("diff", good, other)
        assert (status, out) == (2, "")
        assert words in err


def test_diff_only_looks_so_others_may_own_a_file(run, cache_file):
    one, two = cache_file("a.yaml", measured()), cache_file("b.yaml", measured())
    two.chmod(0o666)
    assert run("diff", one, two)[0] == 0


def test_what_a_cache_says_is_text_and_never_markup(run, cache_file):
    torch_version = Toolchain(triton="[bold]3.9", torch="2.13.0", templates="0123456789abcdef")
    out = run("diff", cache_file("[red]a.yaml", measured()), cache_file("b.yaml", measured(toolchain=torch_version)))[1]
    assert "[bold]3.9" in out
    assert "[red]a.yaml" in out

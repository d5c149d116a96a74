import os
import stat
from pathlib import Path

import pytest
import torch

from attnforge import cli
from attnforge.codegen import AttentionSpec, DType, Pass, Variant, default_config, render
from attnforge.kernels import Kernels
from attnforge.shipping import Shipment
from attnforge.target import Target

RUN = tuple[int, str, str]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder; and no GPU, wherever the tests run."""
    monkeypatch.setenv("ATTNFORGE_CACHE_DIR", str(tmp_path / "user"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path / "user"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The generated/ folder of a checkout that has nothing generated yet."""
    root = tmp_path / "checkout"
    for folder in ("generated", "templates"):
        (root / folder).mkdir(parents=True)
    (root / "pyproject.toml").touch()
    monkeypatch.setattr(Shipment, "installed", lambda: Shipment(root / "generated"))
    return root / "generated"


def variant_of(head_dim: int, target: str = "sm_90", pass_: Pass = Pass.FORWARD, causal: bool = True) -> Variant:
    spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
    return Variant(spec, *default_config(spec, DType.BF16, Target.for_arch(target).limits))


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> RUN:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["generate", *arguments])
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


def test_check_lists_what_is_wrong_and_the_command_that_mends_it(checkout: Path, generate) -> None:
    assert generate()[0] == 0
    assert generate("--check") == (0, f"{len(list(checkout.rglob('*.*')))} files in {checkout} are current\n", "")
    stale, missing, *_ = sorted(checkout.rglob("*.py"))
    stale.write_text("# edited by hand\n" + stale.read_text())
    missing.unlink()
    extra = checkout / "kernels" / "portable" / "extra.py"
    extra.touch()
    status, out, _ = generate("--check")
    assert status == 1
    for word, path in (("stale", stale), ("missing", missing), ("extra", extra)):
        assert f"{word}  {path.relative_to(checkout)}\n" in out
    assert "run `attnforge generate` and commit" in out
    assert extra.exists(), "--check writes nothing"
    assert generate()[0] == 0
    assert generate("--check")[0] == 0


def test_a_manifest_that_lags_behind_is_stale(checkout: Path, generate) -> None:
    generate()
    (checkout / "manifest.json").write_text("{}")
    status, out, _ = generate("--check")
    assert status == 1
    assert "stale  manifest.json" in out


def test_only_what_changed_is_written(checkout: Path, generate) -> None:
    generate()
    first, second, *_ = sorted(checkout.rglob("*.py"))
    first.write_text("")
    untouched = second.stat().st_mtime_ns
    out = generate()[1]
    assert out.splitlines()[0] == f" rewritten  {first.relative_to(checkout)}"
    assert len(out.splitlines()) == 2
    assert second.stat().st_mtime_ns == untouched


def test_a_size_that_is_not_shipped_goes_to_the_users_folder_and_is_found_at_once(cache_dir: Path, generate) -> None:
    folder = cache_dir / "kernels"
    kernels = Kernels(Shipment.installed().folder, folder)
    assert not kernels.is_generated(variant_of(72).spec)
    status, out, _ = generate("--head-dim", "72")
    assert status == 0
    assert "attnforge tune --head-dim 72" in out
    for pass_ in Pass:
        for causal in (False, True):
            for target in ("sm_80", "sm_90"):
                variant = variant_of(72, target, pass_, causal)
                assert kernels.is_generated(variant.spec)
                assert (folder / variant.path).read_text() == render(variant)
    assert "current" in generate("--head-dim", "72")[1]
    assert "written" not in generate("--head-dim", "72")[1]


def test_several_sizes_are_generated_at_once(generate):
    status, out, _ = generate(
        "--head-dim", "72", "--head-dim", "40", "--causal", "--pass", "forward", "--target", "sm_80"
    )
    assert status == 0
    assert "forward_d72_causal" in out
    assert "forward_d40_causal" in out
    assert "attnforge tune --head-dim 72 --head-dim 40" in out


def test_options_narrow_what_is_written(cache_dir: Path, generate) -> None:
    options = ("--head-dim", "72", "--head-dim-v", "40", "--causal", "--pass", "backward", "--target", "sm_80")
    assert generate(*options)[0] == 0
    (written,) = cache_dir.rglob("*.py")
    assert written.parent.name == "backward_d72x40_causal"


def test_nobody_else_can_write_the_users_folder_whatever_the_umask(cache_dir: Path, generate) -> None:
    before = os.umask(0)
    try:
        generate("--head-dim", "72")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (cache_dir, *cache_dir.rglob("*"))}
    assert modes == {0o700, 0o600}


def test_a_folder_that_others_can_write_is_refused(cache_dir: Path, generate) -> None:
    (cache_dir / "kernels").mkdir(parents=True)
    (cache_dir / "kernels").chmod(0o777)
    status, out, err = generate("--head-dim", "72")
    assert (status, out) == (2, "")
    assert "can be written by others" in err
    assert "ATTNFORGE_CACHE_DIR" in err
    assert not list(cache_dir.rglob("*.py"))


def test_print_writes_one_module_to_stdout_and_nothing_to_disk(cache_dir: Path, generate) -> None:
    options = ("--head-dim", "72", "--causal", "--pass", "forward", "--print")
    assert generate(*options) == (0, render(variant_of(72, "sm_90")), "")
    assert generate(*options, "--target", "sm_86")[1] == render(variant_of(72, "sm_86"))
    assert not cache_dir.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--head-dim", "73"), "'head_dim': got 73; supported: a multiple of 8 from 16 to 256"),
        (("--head-dim", "72", "--head-dim-v", "7"), "'head_dim_v': got 7"),
        (("--head-dim-v", "72"), "need --head-dim"),
        (("--pass", "forward"), "need --head-dim"),
        (("--no-causal",), "need --head-dim"),
        (("--print",), "need --head-dim"),
        (("--head-dim", "72", "--print"), "one module"),
        (("--head-dim", "72", "--check"), "leave --head-dim out"),
        (("--head-dim", "72", "--target", "sm_91"), "known targets: sm_80"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options: tuple[str, ...], words: str, generate) -> None:
    status, out, err = generate(*options)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_an_installed_wheel_says_that_there_is_nothing_to_rewrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generate
) -> None:
    monkeypatch.setattr(Shipment, "installed", lambda: Shipment(tmp_path / "site-packages/attnforge/generated"))
    for options in ((), ("--check",)):
        status, out, err = generate(*options)
        assert (status, out) == (2, "")
        assert "--head-dim N" in err
        assert "source checkout" in err

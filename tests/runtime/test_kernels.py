import hashlib
import importlib.util
import inspect
import json
import linecache
import os
import py_compile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attnforge import kernels
from attnforge.codegen import AttentionSpec, DType, Limits, Pass, Variant, default_config, render
from attnforge.errors import KernelNotGeneratedError
from attnforge.kernels import BrokenInstallationError, KernelRefusedWarning, Kernels, Origin

TAMPERED = "\nraise SystemExit('tampered code ran')\n"


def variant_of(head_dim: int = 64, head_dim_v: int | None = None, pass_: Pass = Pass.FORWARD) -> Variant:
    spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim_v or head_dim, causal=True)
    return Variant(spec, *default_config(spec, DType.FP16, Limits("sm_80", 166912)))


VARIANT = variant_of()


class Installation:
    """Folders as an installation has them, with VARIANT shipped."""

    def __init__(self, folder: Path) -> None:
        self.shipped, self.user = folder / "generated", folder / "cache" / "kernels"
        self.file = self.shipped / "kernels" / VARIANT.path
        self.file.parent.mkdir(parents=True)
        self.file.write_text(render(VARIANT))
        self.list(self.file)

    def list(self, *files: Path) -> None:
        listed = {
            path.relative_to(self.shipped).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }
        manifest = {"template_digests": {}, "files": listed}
        (self.shipped / "manifest.json").write_text(json.dumps(manifest))

    def generate(self, variant: Variant) -> Path:
        """What `attnforge generate --head-dim N` writes."""
        file = self.user / variant.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(variant))
        return file

    @property
    def kernels(self) -> Kernels:
        return Kernels(self.shipped, self.user)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


@pytest.fixture(autouse=True)
def strict() -> object:
    """Nothing is refused unless a test says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelRefusedWarning)
        yield


def test_a_shipped_file_is_loaded_when_the_manifest_lists_its_bytes(installation: Installation) -> None:
    source = installation.kernels.source(VARIANT)
    assert (source.origin, source.path) == (Origin.SHIPPED, installation.file)
    module = installation.kernels.load(VARIANT)
    assert callable(module.plan)
    assert callable(module.launch)


def test_what_the_manifest_lists_runs_although_the_templates_render_something_else(installation: Installation) -> None:
    installation.file.write_text("shipped = True\n")
    installation.list(installation.file)
    assert installation.kernels.load(VARIANT).shipped


def test_another_config_of_a_spec_is_rendered_by_the_installed_templates(installation: Installation) -> None:
    other = variant_of(128)
    source = installation.kernels.source(other)
    assert (source.origin, source.path, source.text) == (Origin.RENDERED, None, render(other))


def test_a_module_is_loaded_once_however_many_threads_ask(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    to_module = kernels.KernelSource.to_module
    monkeypatch.setattr(kernels.KernelSource, "to_module", lambda self: made.append(self) or to_module(self))
    loaded_by = installation.kernels
    barrier = threading.Barrier(8)

    def load(_: int) -> object:
        barrier.wait()
        return loaded_by.load(VARIANT)

    with ThreadPoolExecutor(8) as threads:
        modules = list(threads.map(load, range(8)))
    assert len(made) == 1
    assert all(module is modules[0] for module in modules)


def test_a_tampered_shipped_file_is_refused_and_the_rendered_text_runs(installation: Installation) -> None:
    installation.file.write_text(render(VARIANT) + TAMPERED)
    with pytest.warns(
        KernelRefusedWarning, match=r"refused: its bytes are not those that the manifest lists"
    ) as caught:
        module = installation.kernels.load(VARIANT)
    assert str(installation.file) in str(caught[0].message)
    assert callable(module.plan)


def test_a_shipped_file_that_is_gone_is_refused_and_the_rendered_text_runs(installation: Installation) -> None:
    installation.file.unlink()
    with pytest.warns(KernelRefusedWarning, match="cannot be read"):
        assert callable(installation.kernels.load(VARIANT).plan)


def test_a_tampered_file_of_the_user_is_refused_with_one_warning(installation: Installation) -> None:
    variant = variant_of(72)
    file = installation.generate(variant)
    file.write_text(render(variant) + TAMPERED)
    loaded_by = installation.kernels
    with pytest.warns(KernelRefusedWarning, match="not what the installed templates render") as caught:
        module = loaded_by.load(variant)
    assert loaded_by.load(variant) is module
    assert len(caught) == 1
    assert callable(module.plan)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "writable for all", "huge"])
def test_a_file_of_the_user_that_is_not_theirs_alone_is_refused(installation: Installation, kind: str) -> None:
    variant = variant_of(72)
    file = installation.generate(variant)
    if kind == "symlink":
        file.rename(file.with_suffix(".elsewhere"))
        file.symlink_to(file.with_suffix(".elsewhere"))
    elif kind == "fifo":
        file.unlink()
        os.mkfifo(file)
    elif kind == "huge":
        file.write_bytes(b"#" * 2**21)
    else:
        file.chmod(0o666)
    with pytest.warns(KernelRefusedWarning):
        source = installation.kernels.source(variant)
    assert (source.path, source.text) == (None, render(variant))


def test_an_untouched_file_of_the_user_is_named_as_the_kernels_file(installation: Installation) -> None:
    file = installation.generate(variant_of(72))
    assert installation.kernels.source(variant_of(72)).path == file


def test_a_stale_pyc_is_never_used(installation: Installation, tmp_path: Path) -> None:
    """A .pyc with the source's own mtime and size is what Python's import system would run."""
    evil = tmp_path / "evil.py"
    genuine = installation.file.read_text()
    evil.write_text("tampered = True\n".ljust(len(genuine), "#"))
    facts = installation.file.stat()
    os.utime(evil, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    py_compile.compile(str(evil), cfile=importlib.util.cache_from_source(str(installation.file)), doraise=True)
    # The fault is real: an import runs the .pyc.
    spec = importlib.util.spec_from_file_location("imported", installation.file)
    assert spec is not None
    assert spec.loader is not None
    imported = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imported)
    assert imported.tampered
    assert not hasattr(installation.kernels.load(VARIANT), "tampered")


def test_a_file_swapped_after_it_was_hashed_does_not_run(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = installation.file.read_text()
    sha256 = kernels._sha256

    def hash_then_swap(content: bytes) -> str:
        digest = sha256(content)
        installation.file.write_text("tampered = True\n")
        return digest

    monkeypatch.setattr(kernels, "_sha256", hash_then_swap)
    module = installation.kernels.load(VARIANT)
    assert installation.file.read_text() == "tampered = True\n"
    assert not hasattr(module, "tampered")
    assert inspect.getsource(module.plan) in genuine


def test_triton_and_tracebacks_read_the_verified_text_whatever_is_on_disk(installation: Installation) -> None:
    genuine = installation.file.read_text()
    module = installation.kernels.load(VARIANT)
    installation.file.write_text("#\n" * 1000)
    linecache.checkcache()
    for function in (module.forward_kernel.fn, module.plan):
        assert inspect.getsource(function).splitlines()[-1] in genuine
    assert module.forward_kernel.src in genuine
    linecache.clearcache()
    with pytest.raises(OSError, match="source"):
        inspect.getsource(module.plan)


def test_what_is_shipped_or_in_the_users_folder_is_generated(installation: Installation) -> None:
    loaded_by = installation.kernels
    loaded_by.check_generated(VARIANT.spec)
    assert not loaded_by.is_generated(variant_of(pass_=Pass.BACKWARD).spec)
    assert not loaded_by.is_generated(variant_of(72).spec)
    installation.generate(variant_of(72))
    assert loaded_by.is_generated(variant_of(72).spec)
    assert not loaded_by.is_generated(variant_of(72, 64).spec)


@pytest.mark.parametrize(
    ("variant", "command"),
    [
        (variant_of(72), "attnforge generate --head-dim 72"),
        (variant_of(72, 40, Pass.BACKWARD), "attnforge generate --head-dim 72 --head-dim-v 40"),
    ],
)
def test_what_is_not_generated_is_an_error_with_the_command(
    installation: Installation, variant: Variant, command: str
) -> None:
    with pytest.raises(KernelNotGeneratedError) as caught:
        installation.kernels.check_generated(variant.spec)
    assert caught.value.command == command
    assert f"run `{command}` once" in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"files": 3}', "\xff"])
def test_an_installation_without_its_manifest_says_so(installation: Installation, content: str | None) -> None:
    manifest = installation.shipped / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content, encoding="latin-1")
    with pytest.raises(BrokenInstallationError, match=r"manifest\.json.*reinstall"):
        installation.kernels.is_generated(VARIANT.spec)

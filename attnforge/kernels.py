"""Rendered kernels as modules: found, verified, and compiled from the very bytes that were verified.

A module's text is either a shipped file whose hash the manifest lists or what the installed templates render. A file in
the user's folder never runs: it says that its spec was asked for (``attnforge generate``), and it is compared with what
the templates render so that an edit is noticed. Nothing here goes through Python's import system, so that no file is
read a second time and no ``.pyc`` is ever looked at.
"""

from __future__ import annotations

import hashlib
import linecache
import threading
import warnings
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import msgspec

from attnforge.cache.trusted_files import UntrustedFileError, read_trusted
from attnforge.codegen import AttentionSpec, TemplateSet, Variant, render
from attnforge.errors import AttnforgeError, KernelNotGeneratedError, KernelRefused
from attnforge.settings import Settings

_LARGEST_FILE = 2**20
"""Bytes of a user's file that are read for comparison; rendered modules have about 10,000."""


class BrokenInstallationError(AttnforgeError):
    """The manifest, which says what was shipped, is missing or unreadable."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; reinstall attnforge, or run `attnforge generate` in a source checkout")


class KernelRefusedWarning(UserWarning):
    """A kernel's file was refused, and the text that the installed templates render runs instead."""


class _Manifest(msgspec.Struct):
    files: dict[str, str]


class Origin(StrEnum):
    """Where a kernel's text comes from."""

    SHIPPED = "shipped"
    """A file of the package; the manifest lists its hash."""
    RENDERED = "rendered"
    """The installed templates."""


@dataclass(frozen=True, slots=True)
class KernelSource:
    """The verified text of a variant's module."""

    variant: Variant
    text: str
    origin: Origin
    path: Path | None
    """The file that holds the same text, for people to read; None when there is none."""

    @property
    def file_name(self) -> str:
        """What tracebacks and Triton call it: in angle brackets, so that nobody looks for it on disk."""
        return f"<attnforge {self.variant.path} {_sha256(self.text.encode())[:12]}>"

    def to_module(self) -> ModuleType:
        """The module, compiled from this text, which linecache serves to Triton and to tracebacks as well."""
        module = ModuleType(f"attnforge.generated.kernels.{self.variant.name.replace('/', '.')}")
        module.__file__ = self.file_name
        # Without an mtime an entry survives linecache.checkcache(), which inspect.getsource calls first.
        linecache.cache[self.file_name] = (len(self.text), None, self.text.splitlines(keepends=True), self.file_name)
        exec(compile(self.text, self.file_name, "exec", dont_inherit=True), module.__dict__)
        return module


class Kernels:
    """The kernels of an installation and of a user. Thread-safe."""

    def __init__(self, shipped: Path, user: Path, templates: TemplateSet | None = None) -> None:
        """``shipped`` is the folder of the manifest, ``user`` the user's kernels folder, which need not exist."""
        self.shipped = shipped
        self.user = user
        self._templates = templates
        self._modules: dict[Variant, ModuleType] = {}
        self._lock = threading.RLock()

    @staticmethod
    def installed(settings: Settings | None = None) -> Kernels:
        """Those of this installation and of the settings' user, or the environment's; one object for equal settings."""
        return _installed(settings or Settings.from_environment())

    @cached_property
    def manifest(self) -> dict[str, str]:
        """SHA-256 by path below ``shipped``. Raises BrokenInstallationError."""
        path = self.shipped / "manifest.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Manifest).files
        except OSError as error:
            raise BrokenInstallationError(path, f"it cannot be read ({error.strerror})") from error
        except ValueError as error:  # msgspec's errors, and UnicodeDecodeError
            raise BrokenInstallationError(path, f"it is not the manifest that attnforge writes ({error})") from error

    def is_generated(self, spec: AttentionSpec) -> bool:
        """Whether a spec is shipped, or the user's folder holds a kernel of it."""
        return spec.name in self._shipped_specs or any(self.user.glob(f"*/{spec.name}/*.py"))

    def check_generated(self, spec: AttentionSpec) -> None:
        """Raise KernelNotGeneratedError, which names the command to run, unless the spec is generated."""
        if not self.is_generated(spec):
            dims = f"--head-dim {spec.head_dim}"
            if spec.head_dim_v != spec.head_dim:
                dims += f" --head-dim-v {spec.head_dim_v}"
            raise KernelNotGeneratedError(spec, f"attnforge generate {dims}")

    def load(self, variant: Variant) -> ModuleType:
        """The module of any variant, generated or not, from verified text; the same module at every call."""
        module = self._modules.get(variant)
        if module is None:
            with self._lock:
                module = self._modules.get(variant)
                if module is None:
                    module = self._modules[variant] = self.source(variant).to_module()
        return module

    def source(self, variant: Variant) -> KernelSource:
        """The verified text of a variant. A file that is not what it should be is refused with a warning."""
        try:
            shipped = self._shipped_source(variant)
        except KernelRefused as refusal:
            warnings.warn(f"{refusal}; what the templates render runs instead", KernelRefusedWarning, stacklevel=2)
            shipped = None
        return shipped or self._rendered_source(variant)

    @cached_property
    def _shipped_specs(self) -> frozenset[str]:
        paths = (name.split("/") for name in self.manifest)
        return frozenset(parts[2] for parts in paths if parts[0] == "kernels" and len(parts) == 4)

    def _shipped_source(self, variant: Variant) -> KernelSource | None:
        name = f"kernels/{variant.path}"
        if name not in self.manifest:
            return None
        path = self.shipped / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise KernelRefused(path, f"it cannot be read ({error.strerror})") from error
        if _sha256(content) != self.manifest[name]:
            raise KernelRefused(path, "its bytes are not those that the manifest lists")
        return KernelSource(variant, content.decode(), Origin.SHIPPED, path)

    def _rendered_source(self, variant: Variant) -> KernelSource:
        text = render(variant, self._templates)
        path = self.user / variant.path
        try:
            self._check_users_file(path, text.encode())
        except FileNotFoundError:
            return KernelSource(variant, text, Origin.RENDERED, None)
        except KernelRefused as refusal:
            warnings.warn(f"{refusal}; what the templates render runs instead", KernelRefusedWarning, stacklevel=3)
            return KernelSource(variant, text, Origin.RENDERED, None)
        return KernelSource(variant, text, Origin.RENDERED, path)

    def _check_users_file(self, path: Path, expected: bytes) -> None:
        try:
            content = read_trusted(path, root=self.user, limit=_LARGEST_FILE)
        except UntrustedFileError as error:
            raise KernelRefused(path, str(error)) from error
        if content != expected:
            raise KernelRefused(path, "it is not what the installed templates render; run `attnforge generate` again")


def load(variant: Variant) -> ModuleType:
    """The module of a variant, from this installation's verified text."""
    return Kernels.installed().load(variant)


@lru_cache
def _installed(settings: Settings) -> Kernels:
    return Kernels(Path(str(files("attnforge.generated"))), settings.kernels_dir)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

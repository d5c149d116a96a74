"""Which kernels come with the package, and the files that hold them.

The shipped kernels are the default configs of the shipped specs on the archs below, and every config that a shipped
tuned cache names. All else is rendered on demand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from attnforge.cache.reader import read_shipped_cache
from attnforge.codegen import AttentionSpec, DType, Pass, TemplateSet, Variant, default_configs, render
from attnforge.target import Target

HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 256)
"""Of q, k and v alike."""
ARCHS = ("sm_80", "sm_90")
"""Whose default configs are shipped."""
MANIFEST = "manifest.json"


def shipped_specs() -> tuple[AttentionSpec, ...]:
    """Every spec whose kernels come with the package."""
    return tuple(
        AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
        for pass_ in Pass
        for head_dim in HEAD_DIMS
        for causal in (False, True)
    )


def default_variants(
    specs: Iterable[AttentionSpec], targets: Iterable[Target], dtype: DType = DType.BF16
) -> tuple[Variant, ...]:
    """The variants that run on ``targets`` where nothing was tuned, for tensors of whatever layout; each once."""
    pairs = ((spec, target) for target in targets for spec in specs)
    return tuple(
        dict.fromkeys(
            Variant(spec, *default) for spec, target in pairs for default in default_configs(spec, dtype, target.limits)
        )
    )


def tuned_variants(tuned_dir: Path, arch: str | None = None) -> tuple[Variant, ...]:
    """What the package's tuned caches in a folder name, all or those for one arch; each once. Raises CacheRefused."""
    caches = (read_shipped_cache(path) for path in sorted(tuned_dir.glob("*.yaml")))
    of_arch = (cache for cache in caches if arch in (None, cache.target.arch))
    return tuple(dict.fromkeys(entry.variant for cache in of_arch for entry in cache.entries))


def rendered(variants: Iterable[Variant]) -> dict[str, bytes]:
    """Each variant's file, by its path below a kernels folder."""
    return {variant.path: render(variant).encode() for variant in variants}


@dataclass(frozen=True, slots=True)
class Differences:
    """How the files of a folder differ from those wanted; paths are below the folder."""

    missing: tuple[str, ...]
    stale: tuple[str, ...]
    extra: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.stale or self.extra)


class Shipment:
    """The generated files of the package: kernels and the manifest, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def installed() -> Shipment:
        """That of this installation; in a source checkout, its generated/ folder."""
        return Shipment(Path(str(files("attnforge.generated"))))

    @property
    def is_in_checkout(self) -> bool:
        """Whether its files are the sources that are committed, rather than a wheel's."""
        root = self.folder.parent
        return (root / "pyproject.toml").is_file() and (root / "templates").is_dir()

    @property
    def tuned_dir(self) -> Path:
        """The shipped tuned caches, whose winners are shipped as kernels."""
        return self.folder / "tuned"

    def wanted(self) -> dict[str, bytes]:
        """The content of every file, by its path below the folder; raises CacheRefused for a tuned cache."""
        defaults = default_variants(shipped_specs(), [Target.for_arch(arch) for arch in ARCHS])
        variants = dict.fromkeys((*defaults, *tuned_variants(self.tuned_dir)))
        contents = {f"kernels/{path}": content for path, content in sorted(rendered(variants).items())}
        return contents | {MANIFEST: _manifest(variants, contents)}

    def differences(self, wanted: Mapping[str, bytes]) -> Differences:
        """How the folder's generated files differ from those wanted."""
        present = {
            path.relative_to(self.folder).as_posix(): path
            for path in (*(self.folder / "kernels").rglob("*.py"), *self.folder.glob(MANIFEST))
        }
        return Differences(
            missing=tuple(path for path in wanted if path not in present),
            stale=tuple(path for path in wanted if path in present and present[path].read_bytes() != wanted[path]),
            extra=tuple(sorted(path for path in present if path not in wanted)),
        )

    def update(self, wanted: Mapping[str, bytes]) -> Differences:
        """Make the folder hold what is wanted, and write only what changes; returns what that was."""
        differences = self.differences(wanted)
        for path in (*differences.missing, *differences.stale):
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(wanted[path])
        for path in differences.extra:
            file = self.folder / path
            file.unlink()
            _remove_empty_folders(file.parent, self.folder / "kernels")
        return differences


def _manifest(variants: Iterable[Variant], contents: Mapping[str, bytes]) -> bytes:
    """What a kernel's bytes are held against before they run, and what each schedule's were rendered from."""
    definitions = {f"{variant.schedule} {variant.spec.pass_}": variant.definition for variant in variants}
    templates = {name: TemplateSet.installed().digest_of(each) for name, each in sorted(definitions.items())}
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    manifest = {"template_digests": templates, "files": digests}
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _remove_empty_folders(folder: Path, top: Path) -> None:
    """Remove ``folder`` and the folders above it, up to ``top``, that hold nothing any more."""
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent

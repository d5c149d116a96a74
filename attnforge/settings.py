"""What the environment decides, read in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the user's files live. Read once, by whoever starts the work, and handed on."""

    cache_dir: Path
    """The user's folder, absolute; ATTNFORGE_CACHE_DIR moves it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The settings that ``environment`` asks for; a variable that is unset or empty leaves the default."""
        given = environment.get("ATTNFORGE_CACHE_DIR")
        if given:
            return cls(cache_dir=Path(given).expanduser().absolute())
        import platformdirs

        return cls(cache_dir=platformdirs.user_cache_path("attnforge"))

    @property
    def tuned_dir(self) -> Path:
        """Tuned caches: one YAML file a target."""
        return self.cache_dir / "tuned"

    @property
    def kernels_dir(self) -> Path:
        """Rendered kernels, below it by ``Variant.path``."""
        return self.cache_dir / "kernels"

    @property
    def studies_dir(self) -> Path:
        """The tuner's trials: one SQLite file a target."""
        return self.cache_dir / "studies"

"""Puts a spec's winners where attention() looks."""

from __future__ import annotations

from dataclasses import dataclass

from attnforge.cache.store import LoadedCache, TunedCacheStore
from attnforge.settings import Settings
from attnforge.shipping import shipped_specs
from attnforge.target import Target
from attnforge.tuner.result import SpecResult
from attnforge.users_kernels import write_users_kernels


@dataclass(frozen=True)
class Keeper:
    """The user's tuned caches and kernels."""

    settings: Settings
    store: TunedCacheStore

    def load(self, target: Target) -> tuple[LoadedCache, ...]:
        """The target's tuned caches as they are, in look-up order."""
        return self.store.load(target)

    def check_writable(self, target: Target) -> None:
        """See before a tune whether its winners could be kept. Raises what the cache's store raises."""
        self.store.check_writable(target)

    def keep(self, target: Target, result: SpecResult) -> None:
        """Merge what was chosen into the target's tuned cache.

        Kernels of a spec that is not shipped are written first: they opt in to it. So are those of entries that stay,
        should they be gone. Raises what the two writers raise.
        """
        if result.spec not in shipped_specs():
            entries = [each.entry for each in result.problems if each.entry is not None]
            write_users_kernels([entry.variant for entry in entries], self.settings.kernels_dir)
        self.store.write(target, result.entries)

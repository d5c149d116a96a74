"""What the specs of a tune share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from attnforge.cache.schema import Versions
from attnforge.cache.store import LoadedCache
from attnforge.codegen import Variant
from attnforge.compilation import CompilePool, CompileReport, Failure
from attnforge.problem import Problem
from attnforge.target import Target
from attnforge.tuner.comparer import Comparer
from attnforge.tuner.compile_cases import unlike
from attnforge.tuner.devices import Devices
from attnforge.tuner.effort import Effort
from attnforge.tuner.progress import TuneProgress
from attnforge.tuner.study import Studies


@dataclass(frozen=True)
class Resources:
    """What the specs of a tune share."""

    devices: Devices
    comparers: Sequence[Comparer]
    """One for each device."""
    pool: CompilePool
    target: Target
    versions: Versions
    studies: Studies
    caches: tuple[LoadedCache, ...]
    """The target's tuned caches as they were when the tune began."""
    read_caches: Callable[[], tuple[LoadedCache, ...]]
    """Those caches as they are: other tunes write into them too."""
    progress: TuneProgress
    effort: Effort
    lanes: int
    """Configs of one spec that are under way at a time: its share of the compilers, or of the devices where these are
    more. With more no worker would ever wait, but proposals know less: eight under way take 18 trials to where five
    take 17 (tests/tuner/replay_tune.py)."""

    async def compile(self, variant: Variant, problems: Iterable[Problem]) -> CompileReport | Failure:
        """Compile what the problems will launch, each different kernel once; the first failure, if any."""
        futures = [asyncio.wrap_future(self.pool.submit(variant, each, self.target)) for each in unlike(problems)]
        outcomes = await asyncio.gather(*futures)
        return next((outcome for outcome in outcomes if isinstance(outcome, Failure)), outcomes[0])

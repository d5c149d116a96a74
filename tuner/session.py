"""A tune on a GPU: several specs at once share the compilers and the GPU; each is written as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from attnforge.cache.schema import Versions
from attnforge.compilation import CompilePool
from attnforge.tuner.budget import Budget
from attnforge.tuner.comparer import Comparer
from attnforge.tuner.effort import Effort
from attnforge.tuner.interruption import run_until_interrupted
from attnforge.tuner.keeper import Keeper
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Identity
from attnforge.tuner.progress import TuneProgress
from attnforge.tuner.result import SpecResult
from attnforge.tuner.spec_tuner import Resources, SpecTuner
from attnforge.tuner.study import Studies
from attnforge.tuner.task import Task

SPECS_AT_ONCE = 3
"""A search learns from trial to trial, so it cannot keep many compilers busy by itself; several searches can."""


@dataclass
class Session:
    """One tune. The tuner's own process never touches a GPU: what it knows of it the measuring worker has said."""

    tasks: Sequence[Task]
    effort: Effort
    keeper: Keeper
    measurer: Measurer
    pool: CompilePool
    progress: TuneProgress
    fresh: bool = False
    """Whether to forget what earlier runs tried."""
    results: list[SpecResult] = field(default_factory=list)
    """Grows as specs are done: what an interrupted session has kept."""

    def run(self) -> bool:
        """Tune everything; False when it was interrupted (Ctrl-C, SIGTERM). Closes the workers in any case.

        Raises NoGpuError, WorkerUnusableError, StudiesUnusableError, and what the cache's store raises.
        """
        return run_until_interrupted(self._run_and_close())

    async def _run_and_close(self) -> None:
        try:
            with self.pool, self.measurer, Comparer(self.measurer) as comparer:
                await self._tune(await self.measurer.identify(), comparer)
        finally:
            self.progress.close()

    async def _tune(self, identity: Identity, comparer: Comparer) -> None:
        self.progress.began(identity.target)
        resources = Resources(
            measurer=self.measurer,
            comparer=comparer,
            pool=self.pool,
            target=identity.target,
            versions=Versions(identity.triton, identity.torch),
            studies=Studies(self.keeper.settings, identity.target),
            caches=self.keeper.load(identity.target),
            progress=self.progress,
            effort=self.effort,
            lanes=max(2, ceil(1.5 * self.effort.jobs / min(SPECS_AT_ONCE, len(self.tasks)))),
        )
        budget = Budget(self.effort.budget_s, [task.weight for task in self.tasks], SPECS_AT_ONCE)
        turns = asyncio.Semaphore(SPECS_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for task in self.tasks:
                group.create_task(self._tune_in_turn(task, resources, budget, turns))

    async def _tune_in_turn(self, task: Task, resources: Resources, budget: Budget, turns: asyncio.Semaphore) -> None:
        async with turns:
            if self.fresh:
                for problem in task.problems:
                    resources.studies.discard(task.spec, problem, resources.versions)
            tuner = SpecTuner(task, resources)
            ends = budget.start(task.weight)
            result = await tuner.tune(lambda: not budget.has_passed(ends))
            budget.finish(task.weight)
            self.keeper.keep(resources.target, result)
            tuner.confirm()
            self.results.append(result)
            self.progress.finished(result)

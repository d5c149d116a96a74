"""A tune on a GPU: several specs at once share the compilers and the GPU; each is written as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import optuna
import sqlalchemy

from attnforge.cache.schema import Versions
from attnforge.cache.store import LoadedCache, Origin
from attnforge.codegen import AttentionSpec
from attnforge.compilation import CompilePool
from attnforge.tuner.budget import Budget
from attnforge.tuner.comparer import Comparer
from attnforge.tuner.devices import Devices
from attnforge.tuner.effort import Effort
from attnforge.tuner.interruption import run_until_interrupted
from attnforge.tuner.keeper import Keeper
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Identity
from attnforge.tuner.progress import TuneProgress
from attnforge.tuner.resources import Resources
from attnforge.tuner.result import SpecResult
from attnforge.tuner.spec_tuner import SpecTuner
from attnforge.tuner.storage import TrialsNotStoredError
from attnforge.tuner.study import Studies, TrialsForgottenError
from attnforge.tuner.task import Task

NO_SUCH_RECORD = "Record does not exist"
"""What Optuna's KeyError says of a study or trial that is gone."""
SPECS_AT_ONCE = 3
"""A search learns from trial to trial, so it cannot keep many compilers busy by itself; several searches can.
With more devices than this, as many as there are devices."""


@dataclass
class Session:
    """One tune. The tuner's own process never touches a GPU: what it knows of it the measuring workers have said."""

    tasks: Sequence[Task]
    effort: Effort
    keeper: Keeper
    measurer: Measurer
    """Of the first GPU; the others are found through it."""
    pool: CompilePool
    progress: TuneProgress
    fresh: bool = False
    """Whether to forget what earlier runs tried."""
    storage: str | None = None
    """URL of the studies; None is the user's own file."""
    results: list[SpecResult] = field(default_factory=list)
    """Grows as specs are done: what an interrupted session has kept."""
    left: list[AttentionSpec] = field(default_factory=list)
    """Grows when the budget is spent: specs that did not get their turn."""

    def run(self) -> bool:
        """Tune everything; False when it was interrupted, as run_until_interrupted() has it. Closes the workers in any
        case.

        Raises NoGpuError, WorkerUnusableError, WorkerNotStartedError, StudiesUnusableError, StorageUnusableError,
        StudyInUseError, TrialsForgottenError, TrialsNotStoredError, and what the cache's store raises.
        """
        try:
            return run_until_interrupted(self._run_and_close())
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise TrialsNotStoredError(self.storage, error) from error
        except KeyError as error:
            if NO_SUCH_RECORD not in str(error):
                raise
            raise TrialsForgottenError from error

    async def _run_and_close(self) -> None:
        self.progress.starting()
        try:
            with self.pool, Devices(self.measurer) as devices:
                identity = await devices.identify()
                self.keeper.check_writable(identity.target)
                with Studies(self.keeper.settings, identity.target, self.storage) as studies, ExitStack() as stack:
                    comparers = [
                        stack.enter_context(Comparer(each, partial(devices.alone, each))) for each in devices.measurers
                    ]
                    await self._tune(self._resources(identity, devices, comparers, studies))
        finally:
            self.progress.close()

    def _resources(
        self, identity: Identity, devices: Devices, comparers: Sequence[Comparer], studies: Studies
    ) -> Resources:
        at_once = min(self._specs_at_once(len(comparers)), len(self.tasks))
        return Resources(
            devices=devices,
            comparers=comparers,
            pool=self.pool,
            target=identity.target,
            versions=Versions(identity.triton, identity.torch),
            studies=studies,
            caches=self.keeper.load(identity.target),
            read_caches=partial(self.keeper.load, identity.target),
            progress=self.progress,
            effort=self.effort,
            lanes=max(2, ceil(max(self.effort.jobs, len(comparers)) / at_once)),
        )

    async def _tune(self, resources: Resources) -> None:
        devices = len(resources.comparers)
        self.progress.began(resources.target, devices)
        at_once = self._specs_at_once(devices)
        if self.fresh:
            wanted = ((task.spec, problem) for task in self.tasks for problem in task.problems)
            resources.studies.discard(wanted, resources.versions)
        budget = Budget(self.effort.budget_s, [task.weight for task in self.tasks], at_once)
        turns = asyncio.Semaphore(at_once)
        async with asyncio.TaskGroup() as group:
            for place, task in enumerate(_longest_waiting_first(self.tasks, resources.caches)):
                group.create_task(self._tune_in_turn(task, place, resources, budget, turns))

    async def _tune_in_turn(
        self, task: Task, place: int, resources: Resources, budget: Budget, turns: asyncio.Semaphore
    ) -> None:
        async with turns:
            tuner = SpecTuner(task, resources, place)
            if budget.is_spent and not tuner.is_done:
                self.left.append(task.spec)
                return
            ends = budget.start(task.weight)
            result = await tuner.tune(lambda: not budget.has_passed(ends))
            budget.finish(task.weight)
            self.keeper.keep(resources.target, result)
            tuner.confirm(result)
            self.results.append(result)
            self.progress.finished(result)

    @staticmethod
    def _specs_at_once(devices: int) -> int:
        return max(SPECS_AT_ONCE, devices)


def _longest_waiting_first(tasks: Sequence[Task], caches: Sequence[LoadedCache]) -> list[Task]:
    """What the user's caches say nothing of, in the order given; then what was tuned longest ago. So a tune whose
    budget was spent goes on with what it had to leave."""
    tuned: dict[AttentionSpec, float] = {}
    for loaded in caches:
        if loaded.origin is Origin.USER:
            for entry in loaded.cache.entries:
                tuned[entry.spec] = max(entry.created.timestamp(), tuned.get(entry.spec, 0.0))
    return sorted(tasks, key=lambda task: tuned.get(task.spec, 0.0))

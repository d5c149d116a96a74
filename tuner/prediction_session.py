"""A tune without the GPU: specs in turn share the compilers and the interpreters; each is written as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from attnforge.cache.schema import Toolchain
from attnforge.compilation import CompilePool
from attnforge.target import Target
from attnforge.tuner.interruption import run_until_interrupted
from attnforge.tuner.keeper import Keeper
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.prediction import PREDICTED, SpecPrediction
from attnforge.tuner.progress import TuneProgress
from attnforge.tuner.result import SpecResult
from attnforge.tuner.task import Task

SPECS_AT_ONCE = 3
"""One is compiled while another is interpreted."""


@dataclass
class PredictionSession:
    """One tune for a target that is not at hand."""

    tasks: Sequence[Task]
    target: Target
    keeper: Keeper
    pool: CompilePool
    interpreters: Sequence[Measurer]
    progress: TuneProgress
    compilations: int
    """Configs to compile for each spec."""
    results: list[SpecResult] = field(default_factory=list)

    def run(self) -> bool:
        """Predict everything; False when it was interrupted. Raises what the cache's store raises."""
        return run_until_interrupted(self._run_and_close())

    async def _run_and_close(self) -> None:
        self.progress.starting()
        try:
            self.keeper.check_writable(self.target)
            with ExitStack() as stack:
                stack.enter_context(self.pool)
                for interpreter in self.interpreters:
                    stack.enter_context(interpreter)
                await self._predict()
        finally:
            self.progress.close()

    async def _predict(self) -> None:
        self.progress.began(self.target)
        interpreters: asyncio.Queue[Measurer] = asyncio.Queue()
        for interpreter in self.interpreters:
            interpreters.put_nowait(interpreter)
        turns = asyncio.Semaphore(SPECS_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for task in self.tasks:
                group.create_task(self._predict_in_turn(task, interpreters, turns))

    async def _predict_in_turn(
        self, task: Task, interpreters: asyncio.Queue[Measurer], turns: asyncio.Semaphore
    ) -> None:
        async with turns:
            toolchain = Toolchain.installed(PREDICTED, task.spec.pass_)
            prediction = SpecPrediction(
                task, self.target, toolchain, self.pool, interpreters, self.compilations, self.progress
            )
            result = await prediction.predict()
            self.keeper.keep(self.target, result)
            self.results.append(result)
            self.progress.finished(result)

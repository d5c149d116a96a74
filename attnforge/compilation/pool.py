"""Compiles variants in child processes, several at once, each under a deadline."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import msgspec

from attnforge.codegen import Variant
from attnforge.compilation.job import CompileJob, VariantData
from attnforge.compilation.outcome import CompileReport, Failure, FailureKind
from attnforge.compilation.worker import Worker, python_command
from attnforge.problem import Problem
from attnforge.target import Target

Outcome = CompileReport | Failure

DEADLINE_S = 120.0
"""Far more than the slowest shipped variant takes on a busy machine: beyond it the compiler is stuck."""


class CompilePool:
    """``jobs`` compiler processes that live between jobs, and are killed and replaced when they hang or crash.

    They inherit the environment, TRITON_CACHE_DIR included, and see no GPU. Used as a context manager; leaving it
    kills whatever still runs. ``command`` starts another program than the compiler's (for tests).
    """

    def __init__(self, jobs: int, deadline_s: float = DEADLINE_S, command: Sequence[str] | None = None) -> None:
        self._deadline_s = deadline_s
        self._command = list(command or python_command("attnforge.compilation.child"))
        self._tasks: SimpleQueue[tuple[CompileJob, Future[Outcome]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._workers: set[Worker] = set()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        for thread in self._threads:
            thread.start()

    def submit(self, variant: Variant, problem: Problem, target: Target) -> Future[Outcome]:
        """Queue a compilation. A variant's own fault is a Failure, not an exception; cancel() works while it waits.

        The future's exception is a WorkerNotStartedError when the machine has no room for a compiler.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        future: Future[Outcome] = Future()
        self._tasks.put((CompileJob(VariantData.of(variant), problem, target), future))
        return future

    def close(self) -> None:
        """Kill what runs, cancel what waits."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        """What each of the pool's threads does: keep one worker, feed it, replace it."""
        worker: Worker | None = None
        while (task := self._tasks.get()) is not None:
            job, future = task
            if self._closed:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            if worker and worker.has_ended:  # while it waited: not this job's fault
                self._retire(worker)
                worker = None
            try:
                worker = worker or self._start_worker()
                outcome = self._compile(worker, job)
            except BaseException as error:  # no process can be started, say: the caller's to handle, not the thread's
                future.set_exception(error)
                continue
            if not worker.is_alive:
                self._retire(worker)
                worker = None
            future.set_result(outcome)
        if worker:
            self._retire(worker)

    def _compile(self, worker: Worker, job: CompileJob) -> Outcome:
        printed = worker.output_size
        outcome = worker.ask(msgspec.json.encode(job), self._deadline_s, _OUTCOMES)
        if isinstance(outcome, Failure) and outcome.kind is FailureKind.COMPILE:
            # The compiler's diagnostics go to stderr, its exception often says no more than "PassManager::run failed".
            return Failure(outcome.kind, outcome.message + worker.printed_since(printed))
        return outcome

    def _start_worker(self) -> Worker:
        worker = Worker(self._command, _environment())
        with self._lock:
            self._workers.add(worker)
            if self._closed:
                worker.kill()
        return worker

    def _retire(self, worker: Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.close()


_OUTCOMES = msgspec.json.Decoder[Outcome](Outcome)


def _environment() -> dict[str, str]:
    """The parent's, but for what would keep a child from compiling, or let it touch a GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return environment | {"CUDA_VISIBLE_DEVICES": ""}

"""Asks a measuring worker, and keeps one alive whatever the configs do to it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import msgspec

from attnforge.compilation import Failure, FailureKind, Worker, python_command
from attnforge.errors import AttnforgeError, NoGpuError
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.messages import (
    Accurate,
    CheckNumerics,
    Compare,
    Comparison,
    Fatal,
    Identify,
    Identity,
    Measure,
    NoDevice,
    Reply,
    Request,
)

GPU_WORKER = (*python_command("attnforge.tuner.worker"), "gpu")
INTERPRETER_WORKER = (*python_command("attnforge.tuner.worker"), "interpreter")


class WorkerUnusableError(AttnforgeError):
    """No worker can be brought to say what it runs on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"the measuring worker does not start: {failure.message}")
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that a worker may take, start-up not counted, before it and all that it started are killed."""

    identify: float = 120.0
    """Opens the GPU, which takes seconds on a machine with many."""
    measure: float = 20.0
    """The slowest right config of the standard set takes under 2 s; compiling in the worker, where the compilation
    ahead was for other alignments, 10 s."""
    compare: float = 60.0
    check: float = 60.0

    def of(self, request: Request) -> float:
        """The deadline of a request."""
        match request:
            case Identify():
                return self.identify
            case Measure():
                return self.measure
            case Compare():
                return self.compare
            case CheckNumerics():
                return self.check


@dataclass
class Measurer:
    """One device, reached through a worker process that is replaced when it is lost. Used as a context manager."""

    command: Sequence[str] = GPU_WORKER
    environment: Mapping[str, str] = field(default_factory=lambda: measuring_environment(os.environ))
    deadlines: Deadlines = Deadlines()
    workers_started: int = 0
    _worker: Worker | None = None
    _is_closed: bool = False
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asking: threading.Lock = field(default_factory=threading.Lock)

    async def identify(self) -> Identity:
        """What the worker runs on. Raises NoGpuError, or WorkerUnusableError."""
        reply = await self._ask(Identify())
        match reply:
            case Identity():
                return reply
            case NoDevice():
                raise NoGpuError
            case Failure():
                raise WorkerUnusableError(reply)
        raise WorkerUnusableError(_off_topic(reply))

    def another(self) -> Measurer:
        """One of the same device with a worker of its own, which starts now and opens the device when it is asked."""
        measurer = Measurer(self.command, self.environment, self.deadlines)
        measurer._start()
        return measurer

    def with_environment(self, environment: Mapping[str, str]) -> Measurer:
        """One like it whose worker gets another environment; the worker starts when it is asked."""
        return Measurer(self.command, environment, self.deadlines)

    @property
    def process_id(self) -> int | None:
        """Of its worker, if there is one."""
        worker = self._worker
        return None if worker is None else worker.process_id

    async def wake(self) -> None:
        """Wait until the worker has opened its device. What goes wrong is told by the next request."""
        await self._ask(Identify())

    async def measure(self, request: Measure) -> Measurement | Failure:
        """The times of a config, or why it has none."""
        reply = await self._ask(request)
        return reply if isinstance(reply, Measurement | Failure) else _off_topic(reply)

    async def compare(self, request: Compare) -> Comparison | Failure:
        """The times of several configs that took turns."""
        reply = await self._ask(request)
        return reply if isinstance(reply, Comparison | Failure) else _off_topic(reply)

    async def check(self, request: CheckNumerics) -> Accurate | Failure:
        """Whether a config passes the whole accuracy gate."""
        reply = await self._ask(request)
        return reply if isinstance(reply, Accurate | Failure) else _off_topic(reply)

    def close(self) -> None:
        """Kill the worker, even one that is answering; nothing can be asked afterwards."""
        self._is_closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()
        with self._asking:
            self._retire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def _ask(self, request: Request) -> Reply:
        async with self._turn:
            reply = await asyncio.to_thread(self._ask_worker, request)
        # The next request goes out before this reply is digested (10 ms to store a trial): the GPU need not wait.
        await asyncio.sleep(0)
        return reply

    def _ask_worker(self, request: Request) -> Reply:
        with self._asking:
            worker = self._start()
            if self._is_closed:
                self._retire()
                return Failure(FailureKind.CRASH, "the tune is over")
            answered = worker.ask(msgspec.json.encode(request), self.deadlines.of(request))
            reply = answered if isinstance(answered, Failure) else _decoded(answered)
            if isinstance(reply, Fatal):
                self._retire()
                return reply.failure
            if answered is reply or reply is _GARBAGE:
                self._retire()
            return reply

    def _start(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self.command, self.environment)
            self.workers_started += 1
        return self._worker

    def _retire(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


_GARBAGE = Failure(FailureKind.CRASH, "the worker answered with something that is no reply")


def _decoded(frame: bytes) -> Reply:
    try:
        reply: Reply = msgspec.json.decode(frame, type=Reply)
    except msgspec.DecodeError:
        return _GARBAGE
    return reply


def _off_topic(reply: Reply) -> Failure:
    return Failure(FailureKind.CRASH, f"the worker answered with {type(reply).__name__}")


def measuring_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A worker's environment on a GPU: the parent's, but for the interpreter."""
    return {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"}


def interpreting_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A worker's environment without a GPU."""
    return {**environment, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}

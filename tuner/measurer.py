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
from attnforge.errors import NoGpuError
from attnforge.tuner.device_errors import DeviceLostError, WorkerUnusableError
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

WORKERS_TRIED = 2
"""New workers in a row that may fail to open the device before it counts as lost: after a fault a GPU may need the
moment that the second one takes to start."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that a worker may take, start-up not counted, before it and all that it started are killed."""

    identify: float = 60.0
    """Opens the GPU, which takes seconds on a machine with many. The first thing that a worker is asked, so that no
    other deadline has to allow for it."""
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


@dataclass(eq=False)
class Measurer:
    """One device, reached through a worker process that is replaced when it is lost. Used as a context manager.

    What asks it raises DeviceLostError when no new worker can open the device any more, WorkerUnusableError when none
    ever could, and WorkerNotStartedError.
    """

    command: Sequence[str] = GPU_WORKER
    environment: Mapping[str, str] = field(default_factory=lambda: measuring_environment(os.environ))
    deadlines: Deadlines = Deadlines()
    workers_started: int = 0
    _worker: Worker | None = None
    _is_open: bool = False
    """Whether the worker has opened the device."""
    _device: Identity | NoDevice | None = None
    """What the first worker has said that it runs on, and all others must."""
    _family: set[Measurer] = field(default_factory=set)
    """All of this device that are not closed."""
    _stand_in: Measurer | WorkerUnusableError | None = None
    _is_closed: bool = False
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._family.add(self)

    async def identify(self) -> Identity:
        """What the worker runs on. Raises NoGpuError too."""
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
        """One of the same device with a worker of its own, which starts now and opens the device when it is asked.

        Once the device was given up: of the one that stands in for it. Raises WorkerUnusableError when none does.
        """
        if self.present is not self:
            return self.present.another()
        if isinstance(self._stand_in, WorkerUnusableError):
            raise self._stand_in
        measurer = Measurer(self.command, self.environment, self.deadlines, _device=self._device, _family=self._family)
        measurer._start()
        return measurer

    def with_environment(self, environment: Mapping[str, str]) -> Measurer:
        """One like it whose worker gets another environment; the worker starts when it is asked."""
        return Measurer(self.command, environment, self.deadlines)

    def give_up(self, stand_in: Measurer | WorkerUnusableError) -> None:
        """Close it because its device is lost: another stands in for it, or none is left, and this is why."""
        self._stand_in = stand_in
        self.close()

    @property
    def present(self) -> Measurer:
        """Itself, or who stands in for it."""
        return self._stand_in.present if isinstance(self._stand_in, Measurer) else self

    def is_on(self, identity: Identity) -> bool:
        """Whether that is its device."""
        return isinstance(self._device, Identity) and self._device.is_same_device(identity)

    @property
    def process_id(self) -> int | None:
        """Of its worker, if there is one."""
        worker = self._worker
        return None if worker is None else worker.process_id

    async def wake(self) -> WorkerUnusableError | None:
        """Wait until the worker has opened its device; why none can."""
        try:
            await self._ask(Identify())
        except WorkerUnusableError as error:
            return error
        return None

    async def measure(self, request: Measure) -> Measurement | Failure:
        """The times of a config, or why it has none."""
        reply = await self._ask(request)
        return reply if isinstance(reply, Measurement | Failure) else _off_topic(reply)

    async def compare(self, request: Compare) -> Comparison | Failure:
        """The times of several configs that took turns."""
        # A worker that waits for its own comparison has the GPU open already, and is no stranger on it.
        family = (each.process_id for each in self._family if each is not self)
        own = {*request.own_processes, *(number for number in family if number is not None)}
        reply = await self._ask(msgspec.structs.replace(request, own_processes=tuple(sorted(own))))
        return reply if isinstance(reply, Comparison | Failure) else _off_topic(reply)

    async def check(self, request: CheckNumerics) -> Accurate | Failure:
        """Whether a config passes the whole accuracy gate."""
        reply = await self._ask(request)
        return reply if isinstance(reply, Accurate | Failure) else _off_topic(reply)

    def close(self) -> None:
        """Kill the worker, even one that is answering; nothing can be asked afterwards."""
        self._is_closed = True
        self._family.discard(self)
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
            if self._worker is not None and self._worker.has_ended:
                self._retire()  # killed while it idled, for memory say: not the fault of what is asked now
            if not self._is_open:
                self._open()
            if not self._is_open or self._device is None:
                return _OVER
            return self._device if isinstance(request, Identify) else self._reply(request)

    def _open(self) -> None:
        """Have a worker open the device before anything else is asked of it: what that costs, and whether it works at
        all, is no config's affair. It stays shut once this measurer is closed."""
        failure = _OVER
        for _ in range(WORKERS_TRIED):
            reply = self._reply(Identify())
            self._is_open = self._recognises(reply)
            if self._is_open:
                return
            self._retire()
            if self._is_closed:
                return
            failure = _why_not(reply)
        if isinstance(self._device, Identity):
            raise DeviceLostError(self._device, failure)
        raise WorkerUnusableError(failure)

    def _recognises(self, reply: Reply) -> bool:
        """Whether that is what the first worker has said too."""
        if self._device is None and isinstance(reply, Identity | NoDevice):
            self._device = reply
        if isinstance(reply, Identity):
            return self.is_on(reply)
        return isinstance(reply, NoDevice) and isinstance(self._device, NoDevice)

    def _reply(self, request: Request) -> Reply:
        """What the worker answers; it is started before, and ended after, where need be."""
        worker = self._start()
        if self._is_closed:
            self._retire()
            return _OVER
        reply = worker.ask(msgspec.json.encode(request), self.deadlines.of(request), _REPLIES)
        if isinstance(reply, Fatal) or not worker.is_alive:
            self._retire()
        return reply.failure if isinstance(reply, Fatal) else reply

    def _start(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self.command, self.environment)
            self.workers_started += 1
        return self._worker

    def _retire(self) -> None:
        self._is_open = False
        if self._worker is not None:
            self._worker.close()
            self._worker = None


_OVER = Failure(FailureKind.CRASH, "the tune is over")
_REPLIES = msgspec.json.Decoder[Reply](Reply)


def _why_not(reply: Reply) -> Failure:
    """Why what a new worker has said of its device does not do."""
    match reply:
        case Failure():
            return reply
        case NoDevice():
            return Failure(FailureKind.CRASH, reply.message)
        case Identity():
            return Failure(FailureKind.CRASH, f"{reply.target.name} ({reply.uuid}) is in its place")
    return _off_topic(reply)


def _off_topic(reply: Reply) -> Failure:
    return Failure(FailureKind.CRASH, f"the worker answered with {type(reply).__name__}")


def measuring_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A worker's environment on a GPU: the parent's, but for the interpreter."""
    return {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"}


def interpreting_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A worker's environment without a GPU."""
    return {**environment, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}

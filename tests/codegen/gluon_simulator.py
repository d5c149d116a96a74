"""Runs a rendered Gluon module on the CPU: its very text, with numpy for registers and shared memory.

Partitions take turns at random; TMA loads arrive late, in any order; a wgmma reads its operands when it is waited for.
What goes wrong on a GPU now and then goes wrong here at once: a deadlock, a buffer that is filled while it is read, a
result used before its wait (a value that is not there), data read before they arrive (NaN).
"""

from __future__ import annotations

import builtins
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.codegen import gluon_names
from tests.codegen.gluon_pieces import (
    Barrier,
    BarrierLayout,
    Buffer,
    Descriptor,
    InFlight,
    Layout,
    Pointer,
    ProtocolError,
    Ring,
    View,
    reduce_fragments,
    tile,
)


class StoppedError(Exception):
    """Another partition failed."""


class Program:
    """What is a program's own."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.partitions = self.loads = 0
        """Those that have not ended yet."""
        self.named: dict[int, list[int]] = {}
        self.buffers: list[Buffer] = []


class Machine:
    """Programs, so many ``resident`` at a time, each with its partitions and barriers. They start in their order."""

    def __init__(self, seed: int, resident: int = 1) -> None:
        self._random = random.Random(seed)
        self._resident = resident
        self._here = threading.local()
        self._to_start: deque[Callable[[], None]] = deque()
        self._loads: list[Callable[[], None]] = []
        self._threads: dict[threading.Thread, threading.Semaphore] = {}
        self._slow: threading.Semaphore | None = None
        self._wgmmas: dict[threading.Thread, list[InFlight]] = {}
        self._stores: dict[threading.Thread, list[Callable[[], None]]] = {}
        self._idle = 0
        self._failure: BaseException | None = None
        self._done = threading.Semaphore(0)
        self.programs = 1
        """Of the launch."""

    @property
    def program(self) -> Program:
        """The one that asks."""
        program: Program = self._here.program
        return program

    def launch(self, kernel: Callable[..., None], programs: int, *arguments: Any) -> None:
        """Run every program. Raises ProtocolError, or what the kernel raises."""
        self.programs = programs
        pointers = [Pointer(each) if isinstance(each, torch.Tensor) else each for each in arguments]

        def start(number: int) -> None:
            self._here.program = Program(number)
            kernel(*pointers)

        self._to_start.extend(partial(start, number) for number in range(programs))
        while self._to_start:
            for _ in range(min(self._resident, len(self._to_start))):
                self._to_start.popleft()()
            if self._threads:
                self._pick().release()
                self._done.acquire()
            if self._failure is not None:
                raise self._failure

    def specialize(self, partitions: Sequence[tuple[Callable[..., None], Sequence[Any]]], *_: Any) -> None:
        """Run the partitions side by side, from when their program returns."""
        self.program.partitions = len(partitions)
        for function, arguments in partitions:
            thread = threading.Thread(target=self._run, args=(self.program, function, arguments), daemon=True)
            self._threads[thread] = threading.Semaphore(0)
            self._wgmmas[thread], self._stores[thread] = [], []
            thread.start()

    def _run(self, program: Program, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        me = threading.current_thread()
        self._here.program = program
        self._threads[me].acquire()
        try:
            if self._failure is None:
                function(*arguments)
                self._end(program)
        except StoppedError:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        del self._threads[me], self._wgmmas[me], self._stores[me]
        self._idle = 0
        (self._pick() if self._threads else self._done).release()

    def _end(self, program: Program) -> None:
        """Of this partition; behind a program's last another program starts."""
        if self._wgmmas[threading.current_thread()]:
            raise ProtocolError("a wgmma is never waited for")
        if self._stores[threading.current_thread()]:
            raise ProtocolError("a TMA store is never waited for")
        program.partitions -= 1
        if program.partitions == 0:
            if program.loads or any(arrived for arrived, _ in program.named.values()):
                raise ProtocolError("a load or half a named barrier is left over")
            if self._to_start:
                self._to_start.popleft()()

    def _pick(self) -> threading.Semaphore:
        """Of any partition, but seldom of the one that is slow just now."""
        turns = list(self._threads.values())
        if self._slow not in turns or self._random.random() < 0.01:
            self._slow = self._random.choice(turns)
        picked = self._random.choice(turns)
        return self._random.choice(turns) if picked is self._slow else picked

    def switch(self) -> None:
        """Let something else happen."""
        if self._loads and self._random.random() < 0.1:
            self._loads.pop(self._random.randrange(len(self._loads)))()
            self._idle = 0
        queue = self._random.choice(list(self._stores.values()))
        if queue and self._random.random() < 0.03:
            queue.pop(0)()
        mine = self._threads[threading.current_thread()]
        other = self._pick()
        if other is not mine:
            other.release()
            mine.acquire()
        if self._failure is not None:
            raise StoppedError

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Raises ProtocolError when it never will."""
        self.switch()
        while not happened():
            self._idle += 1
            if self._idle > 2000 and not self._loads:
                raise ProtocolError("deadlock")
            self.switch()
        self._idle = 0

    def named_barrier(self, op: str, number: int) -> None:
        """bar.sync and bar.arrive of two warpgroups."""
        state = self.program.named.setdefault(number, [0, 0])
        state[0] += 1
        generation = state[1]
        if state[0] == 2:
            state[:] = [0, generation + 1]
        if op == "sync":
            self.wait_until(lambda: state[1] != generation)

    def load(self, descriptor: Descriptor, start: Sequence[int], barrier: Barrier, view: View) -> None:
        """A TMA load, which arrives later."""
        buffer = view.buffer
        if buffer.readers:
            raise ProtocolError("a buffer is filled while it may be read")
        buffer.data[...] = np.nan
        program = self.program
        program.loads += 1

        def arrive() -> None:
            source, target = descriptor.boxes([int(each) for each in start])
            if buffer.readers:
                raise ProtocolError("a buffer is read before it is full")
            program.loads -= 1
            buffer.data[...] = 0
            buffer.data[target] = descriptor.base.numpy()[source]
            barrier.bytes -= buffer.data.nbytes
            barrier.complete()

        self._loads.append(arrive)
        self.switch()

    def store(self, descriptor: Descriptor, start: Sequence[int], view: View) -> None:
        """A TMA store, which reads shared memory later, at the latest when it is waited for."""
        if view.buffer.unfenced_writer is not None:
            raise ProtocolError("a TMA store reads what no fence has published")
        view.buffer.readers += 1

        def leave() -> None:
            target, source = descriptor.boxes([int(each) for each in start])
            descriptor.base.numpy()[target] = view.buffer.data[source]
            view.buffer.readers -= 1

        self._stores[threading.current_thread()].append(leave)
        self.switch()

    def store_wait(self, outstanding: int) -> None:
        """Until at most so many of this partition's TMA stores have still to read."""
        self.switch()
        queue = self._stores[threading.current_thread()]
        while len(queue) > outstanding:
            queue.pop(0)()

    def multiply(self, a: Any, b: View, acc: Any, use_acc: bool = True, is_async: bool = False) -> InFlight:
        """wgmma."""
        assert is_async
        if any(isinstance(each, View) and each.buffer.unfenced_writer is not None for each in (a, b)):
            raise ProtocolError("a wgmma reads what no fence has published")
        self._wgmmas[threading.current_thread()].append(InFlight(a, b, acc, use_acc))
        self.switch()
        return self._wgmmas[threading.current_thread()][-1]

    def multiply_wait(self, outstanding: int, deps: Sequence[InFlight]) -> Any:
        """Of the results those that are there, the others still in flight."""
        queue = self._wgmmas[threading.current_thread()]
        while len(queue) > outstanding:
            self.switch()
            queue.pop(0).finish()
        results = tuple(each if each.value is None else each.value for each in deps)
        return results[0] if len(results) == 1 else results

    def assembly(self, text: str, _: str, arguments: Sequence[Any], **options: Any) -> Any:
        """A named barrier, a counter, two 16-bit floats in one integer, additions to global memory, or an identity."""
        if text.startswith("cvt.rn.f16x2.f32"):
            even, odd = (np.asarray(each).astype(np.float16).view(np.uint16).astype(np.uint32) for each in arguments)
            return tile(even | odd << 16)
        if "red.relaxed" in text:
            self.switch()
            if "add.s32" in text:
                return arguments[0].add(np.atleast_1d(arguments[0].offsets), 1)
            return reduce_fragments(text, *arguments)
        if "ld.acquire" in text:
            address, count = arguments
            self.wait_until(lambda: address.load() >= count)
            return 0
        found = re.match(r"bar\.(sync|arrive) (\d+), 256;", text)
        if found is None:
            return arguments[0]
        assert int(found[2]) >= 8, "Triton's own"
        return self.named_barrier(found[1], int(found[2]))

    def allocate(self, dtype: Any, shape: Sequence[int], layout: Layout) -> Ring:
        """Shared memory, or barriers."""
        if isinstance(layout, BarrierLayout):
            return Ring([Barrier() for _ in range(shape[0])])
        buffers = [Buffer(shape[1:], dtype) for _ in range(shape[0])]
        self.program.buffers += buffers
        return Ring([View(buffer, lambda data: data) for buffer in buffers])

    def fence(self) -> None:
        """What this partition wrote to shared memory is there for TMA and wgmma."""
        for buffer in self.program.buffers:
            if buffer.unfenced_writer is threading.current_thread():
                buffer.unfenced_writer = None

    def module(self, text: str) -> SimpleNamespace:
        """A rendered module that runs on this machine."""
        gluon = gluon_names.gluon(self)
        path = "triton.experimental.gluon"
        triton = gluon_names.triton(self)
        stand_ins = {
            "triton": triton,
            "triton.language": triton,
            "triton.experimental": SimpleNamespace(gluon=gluon),
            path: gluon,
            f"{path}.language.nvidia.hopper": gluon.hopper,
            f"{path}.nvidia.hopper": SimpleNamespace(TensorDescriptor=Descriptor),
        }

        def import_(name: str, *arguments: Any) -> Any:
            return stand_ins.get(name) or builtins.__import__(name, *arguments)

        namespace: dict[str, Any] = {"__builtins__": {**vars(builtins), "__import__": import_}}
        exec(compile(text, "<rendered>", "exec"), namespace)
        return SimpleNamespace(**namespace)

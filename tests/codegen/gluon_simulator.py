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
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.codegen import gluon_pieces as pieces
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
    tile,
)


class StoppedError(Exception):
    """Another partition failed."""


class Machine:
    """One program at a time: its partitions, barriers and loads."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._loads: list[Callable[[], None]] = []
        self._threads: dict[threading.Thread, threading.Semaphore] = {}
        self._wgmmas: dict[threading.Thread, list[InFlight]] = {}
        self._stores: dict[threading.Thread, list[Callable[[], None]]] = {}
        self._named: dict[int, list[int]] = {}
        self._buffers: list[Buffer] = []
        self._idle = 0
        self._failure: BaseException | None = None
        self._done = threading.Semaphore(0)
        self._program, self._programs = 0, 1

    def launch(self, kernel: Callable[..., None], programs: int, *arguments: Any) -> None:
        """Run every program. Raises ProtocolError, or what the kernel raises."""
        for program in range(programs):
            self._program, self._programs = program, programs
            self._named, self._buffers, self._stores = {}, [], {}
            kernel(*[Pointer(each) if isinstance(each, torch.Tensor) else each for each in arguments])

    def specialize(self, partitions: Sequence[tuple[Callable[..., None], Sequence[Any]]], *_: Any) -> None:
        """Run the partitions side by side."""
        for function, arguments in partitions:
            thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
            self._threads[thread] = threading.Semaphore(0)
            self._wgmmas[thread], self._stores[thread] = [], []
            thread.start()
        self._pick().release()
        self._done.acquire()
        if self._failure is not None:
            raise self._failure
        if self._loads or any(arrived for arrived, _ in self._named.values()):
            raise ProtocolError("a load or half a named barrier is left over")

    def _run(self, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        me = threading.current_thread()
        self._threads[me].acquire()
        try:
            if self._failure is None:
                function(*arguments)
                if self._wgmmas[me]:
                    raise ProtocolError("a wgmma is never waited for")
                if self._stores[me]:
                    raise ProtocolError("a TMA store is never waited for")
        except StoppedError:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        del self._threads[me]
        self._idle = 0
        (self._pick() if self._threads else self._done).release()

    def _pick(self) -> threading.Semaphore:
        return self._random.choice(list(self._threads.values()))

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
        state = self._named.setdefault(number, [0, 0])
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

        def arrive() -> None:
            source, target = descriptor.boxes([int(each) for each in start])
            if buffer.readers:
                raise ProtocolError("a buffer is read before it is full")
            buffer.data[...] = 0
            buffer.data[target] = descriptor.base.numpy()[source]
            barrier.bytes -= buffer.data.nbytes
            barrier.complete()

        self._loads.append(arrive)
        self.switch()

    def store(self, descriptor: Descriptor, start: Sequence[int], view: View, *, add: bool = False) -> None:
        """A TMA store or reduction, which reads shared memory later, at the latest when it is waited for."""
        if view.buffer.unfenced_writer is not None:
            raise ProtocolError("a TMA store reads what no fence has published")
        view.buffer.readers += 1

        def leave() -> None:
            target, source = descriptor.boxes([int(each) for each in start])
            kept = descriptor.base.numpy()[target] if add else 0
            descriptor.base.numpy()[target] = kept + view.buffer.data[source]
            view.buffer.readers -= 1

        self._stores[threading.current_thread()].append(leave)
        self.switch()

    def reduce_add(self, descriptor: Descriptor, start: Sequence[int], view: View) -> None:
        """A TMA reduction."""
        self.store(descriptor, start, view, add=True)

    def store_wait(self, outstanding: int) -> None:
        """Until at most so many of this partition's TMA stores have still to read."""
        self.switch()
        queue = self._stores[threading.current_thread()]
        while len(queue) > outstanding:
            queue.pop(0)()

    def multiply(self, a: Any, b: View, acc: Any, use_acc: bool = True, is_async: bool = False) -> InFlight:
        """wgmma."""
        assert is_async
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
        """A named barrier, a counter's, two 16-bit floats in one integer, additions to global memory, or an identity."""
        if text.startswith("cvt.rn.f16x2.f32"):
            even, odd = (np.asarray(each).astype(np.float16).view(np.uint16).astype(np.uint32) for each in arguments)
            return tile(even | odd << 16)
        if "red." in text:
            self.switch()
            if "add.s32" in text:
                return arguments[0].add(np.atleast_1d(arguments[0].offsets), 1)
            return pieces.reduce_fragments(text, *arguments)
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
        self._buffers += buffers
        return Ring([View(buffer, lambda data: data) for buffer in buffers])

    def fence(self) -> None:
        """What this partition wrote to shared memory is there for TMA."""
        for buffer in self._buffers:
            if buffer.unfenced_writer is threading.current_thread():
                buffer.unfenced_writer = None

    def module(self, text: str) -> SimpleNamespace:
        """A rendered module that runs on this machine."""
        gluon = _gluon(self)
        path = "triton.experimental.gluon"
        triton = _triton(self)
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


def jit(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda each: each


def _triton(machine: Machine) -> SimpleNamespace:
    language = SimpleNamespace(
        constexpr=pieces.constexpr, float32=np.float32, int64=np.int64,
        program_id=lambda axis: pieces.Int(machine._program),
        zeros=lambda shape, dtype: tile(np.zeros(shape, dtype)), arange=lambda start, end: tile(np.arange(start, end)),
        load=Pointer.load, store=Pointer.store, where=lambda test, yes, no: tile(np.where(test, yes, no)),
        sum=lambda x, axis: tile(np.sum(x, axis)), reshape=np.reshape, permute=np.transpose,
    )  # fmt: skip
    return SimpleNamespace(jit=jit, cdiv=lambda count, size: -(-count // size), language=language)


def _gluon(machine: Machine) -> SimpleNamespace:
    reduced = {"sum": np.sum, "max": np.max}
    language = SimpleNamespace(
        constexpr=pieces.constexpr, static_range=range, float16=np.float16, bfloat16=None, float32=np.float32,
        int32=np.int32, uint16=np.uint16, uint32=np.uint32, int64=np.int64,
        NVMMADistributedLayout=Layout, SliceLayout=Layout, DotOperandLayout=Layout,
        NVMMASharedLayout=SimpleNamespace(get_default_for=lambda *_: Layout()),
        allocate_shared_memory=machine.allocate, warp_specialize=machine.specialize,
        inline_asm_elementwise=machine.assembly,
        program_id=lambda axis: machine._program, num_programs=lambda axis: machine._programs,
        zeros=lambda shape, *_: tile(np.zeros(shape, np.float32)),
        full=lambda shape, value, *_: tile(np.full(shape, value, np.float32)),
        arange=lambda start, end, layout: tile(np.arange(start, end)),
        where=lambda test, yes, no: tile(np.where(test, yes, no)) if np.ndim(test) else (no, yes)[bool(test)],
        minimum=lambda a, b: np.minimum(a, b) if np.ndim(a) else min(a, b),
        maximum=lambda a, b: np.maximum(a, b) if np.ndim(a) else max(a, b),
        split=lambda x: (x[..., 0], x[..., 1]), join=lambda *parts: tile(np.stack(parts, -1)),
        exp2=np.exp2, log2=np.log2, reshape=np.reshape, permute=np.transpose, load=Pointer.load,
        expand_dims=lambda x, axis: np.expand_dims(x, axis),
        convert_layout=lambda x, layout, assert_trivial=False: x, cast=lambda value, dtype: value,
        store=Pointer.store,
        **{name: (lambda x, axis, f=f: tile(f(x, axis=axis))) for name, f in reduced.items()},
    )  # fmt: skip

    hopper = SimpleNamespace(
        fence_async_shared=machine.fence, warpgroup_mma=machine.multiply, warpgroup_mma_wait=machine.multiply_wait,
        mbarrier=SimpleNamespace(
            MBarrierLayout=BarrierLayout, init=Barrier.start, expect=Barrier.expect, arrive=Barrier.arrive,
            wait=lambda barrier, phase, pred=True: machine.wait_until(lambda: not pred or barrier.phase != phase),
        ),
        tma=SimpleNamespace(async_load=machine.load, async_store=machine.store, async_atomic_add=machine.reduce_add,
            store_wait=machine.store_wait),
    )  # fmt: skip
    return SimpleNamespace(jit=jit, constexpr_function=jit, language=language, hopper=hopper)

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


class ProtocolError(AssertionError):
    """The module broke a rule of the hardware."""


class _Tile(np.ndarray):  # type: ignore[type-arg]
    """A tensor in registers."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype: Any) -> _Tile:
        """Rounded; computed on in fp32 all the same."""
        return _tile(self.astype(dtype).astype(np.float32))


def _tile(value: Any) -> _Tile:
    return np.asarray(value).view(_Tile)


class _Int(int):
    value = property(int)


class _Float(float):
    value = property(float)


class _Layout:
    def __init__(self, *arguments: Any) -> None:
        self.value = self


class _BarrierLayout(_Layout):
    pass


def _constexpr(value: Any) -> Any:
    if isinstance(value, _Layout):
        return value
    return _Float(value) if isinstance(value, float) else _Int(value)


class _Descriptor:
    """A TMA descriptor of a CPU tensor."""

    layout = _Layout()

    def __init__(self, base: torch.Tensor, shape: Sequence[int], strides: Sequence[int], block: Sequence[int], _: Any):
        assert all(stride * base.element_size() % 16 == 0 and stride for stride in strides[:-1])
        self.shape, self.block = shape, block
        self.base = base[: shape[0], : shape[1]]
        self.dtype = base.numpy().dtype

    def boxes(self, start: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What of the tensor lies in the block at ``start``, and where in the block that is."""
        ends = [min(first + width, size) for first, width, size in zip(start, self.block, self.base.shape, strict=True)]
        inside = [max(end - first, 0) for first, end in zip(start, ends, strict=True)]
        source = tuple(slice(first, first + count) for first, count in zip(start, inside, strict=True))
        return source, tuple(slice(0, count) for count in inside)


class _Buffer:
    """Shared memory that is filled and read as a whole."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.data = np.full(shape, np.nan, dtype=dtype)
        self.readers = 0
        self.unfenced_writer: threading.Thread | None = None


class _View:
    """A buffer, seen in another shape."""

    def __init__(self, buffer: _Buffer, see: Callable[[Any], Any]) -> None:
        self.buffer, self._see = buffer, see
        self.dtype = buffer.data.dtype

    def reshape(self, shape: Sequence[int]) -> _View:
        return _View(self.buffer, lambda data: self._see(data).reshape(shape))

    def permute(self, order: Sequence[int]) -> _View:
        return _View(self.buffer, lambda data: self._see(data).transpose(order))

    def read(self) -> _Tile:
        return _tile(self._see(self.buffer.data).astype(np.float32))

    def store(self, value: _Tile) -> None:
        if self.buffer.readers:
            raise ProtocolError("shared memory is written while a wgmma may read it")
        self._see(self.buffer.data)[...] = value
        self.buffer.unfenced_writer = threading.current_thread()


class _Barrier:
    def __init__(self) -> None:
        self.count = self.pending = self.bytes = self.phase = 0

    def arrive(self, count: int = 1) -> None:
        self.pending -= count
        if self.pending < 0:
            raise ProtocolError("too many arrivals at an mbarrier")
        self.complete()

    def complete(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count


class _Ring:
    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self.dtype = getattr(items[0], "dtype", None)

    def index(self, at: int) -> Any:
        return self._items[at]


class _InFlight:
    """What a wgmma will give. It has no value until it is waited for."""

    value: _Tile | None = None

    def __init__(self, a: _View | _Tile, b: _View, accumulator: Any, use_acc: bool) -> None:
        self._operands, self._accumulator, self._use_acc = (a, b), accumulator, use_acc
        for view in self._views():
            view.buffer.readers += 1

    def _views(self) -> list[_View]:
        return [operand for operand in self._operands if isinstance(operand, _View)]

    def finish(self) -> None:
        a, b = (operand.read() if isinstance(operand, _View) else operand for operand in self._operands)
        before = self._accumulator.value if isinstance(self._accumulator, _InFlight) else self._accumulator
        product = a @ b
        self.value = _tile(before + product if self._use_acc else product)
        for view in self._views():
            view.buffer.readers -= 1


class _Stop(Exception):
    """Another partition failed."""


class Machine:
    """One program at a time: its partitions, barriers and loads."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._loads: list[Callable[[], None]] = []
        self._threads: dict[threading.Thread, threading.Semaphore] = {}
        self._wgmmas: dict[threading.Thread, list[_InFlight]] = {}
        self._named: dict[int, list[int]] = {}
        self._buffers: list[_Buffer] = []
        self._idle = 0
        self._failure: BaseException | None = None
        self._done = threading.Semaphore(0)
        self._program, self._programs = 0, 1

    def launch(self, kernel: Callable[..., None], programs: int, *arguments: Any) -> None:
        """Run every program. Raises ProtocolError, or what the kernel raises."""
        for program in range(programs):
            self._program, self._programs = program, programs
            self._named, self._buffers = {}, []
            kernel(*[_Pointer(each) if isinstance(each, torch.Tensor) else each for each in arguments])

    def specialize(self, partitions: Sequence[tuple[Callable[..., None], Sequence[Any]]], *_: Any) -> None:
        """Run the partitions side by side."""
        for function, arguments in partitions:
            thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
            self._threads[thread] = threading.Semaphore(0)
            self._wgmmas[thread] = []
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
        except _Stop:
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
        if self._loads and self._random.random() < 0.3:
            self._loads.pop(self._random.randrange(len(self._loads)))()
            self._idle = 0
        mine = self._threads[threading.current_thread()]
        other = self._pick()
        if other is not mine:
            other.release()
            mine.acquire()
        if self._failure is not None:
            raise _Stop

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

    def load(self, descriptor: _Descriptor, start: Sequence[int], barrier: _Barrier, view: _View) -> None:
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

    def store(self, descriptor: _Descriptor, start: Sequence[int], view: _View) -> None:
        """A TMA store."""
        if view.buffer.unfenced_writer is not None:
            raise ProtocolError("a TMA store reads what no fence has published")
        target, source = descriptor.boxes([int(each) for each in start])
        descriptor.base.numpy()[target] = view.buffer.data[source]

    def multiply(self, a: Any, b: _View, acc: Any, use_acc: bool = True, is_async: bool = False) -> _InFlight:
        """wgmma."""
        assert is_async
        self._wgmmas[threading.current_thread()].append(_InFlight(a, b, acc, use_acc))
        self.switch()
        return self._wgmmas[threading.current_thread()][-1]

    def multiply_wait(self, outstanding: int, deps: Sequence[_InFlight]) -> Any:
        """Of the results those that are there, the others still in flight."""
        queue = self._wgmmas[threading.current_thread()]
        while len(queue) > outstanding:
            self.switch()
            queue.pop(0).finish()
        results = tuple(each if each.value is None else each.value for each in deps)
        return results[0] if len(results) == 1 else results

    def assembly(self, text: str, _: str, arguments: Sequence[Any], **options: Any) -> Any:
        """A named barrier, or an identity."""
        found = re.match(r"bar\.(sync|arrive) (\d+), 256;", text)
        if found is None:
            return arguments[0]
        assert int(found[2]) >= 8, "Triton's own"
        return self.named_barrier(found[1], int(found[2]))

    def allocate(self, dtype: Any, shape: Sequence[int], layout: _Layout) -> _Ring:
        """Shared memory, or barriers."""
        if isinstance(layout, _BarrierLayout):
            return _Ring([_Barrier() for _ in range(shape[0])])
        buffers = [_Buffer(shape[1:], dtype) for _ in range(shape[0])]
        self._buffers += buffers
        return _Ring([_View(buffer, lambda data: data) for buffer in buffers])

    def fence(self) -> None:
        """What this partition wrote to shared memory is there for TMA."""
        for buffer in self._buffers:
            if buffer.unfenced_writer is threading.current_thread():
                buffer.unfenced_writer = None

    def module(self, text: str) -> SimpleNamespace:
        """A rendered module that runs on this machine."""
        gluon = _gluon(self)
        path = "triton.experimental.gluon"
        stand_ins = {
            "triton.experimental": SimpleNamespace(gluon=gluon),
            path: gluon,
            f"{path}.language.nvidia.hopper": gluon.hopper,
            f"{path}.nvidia.hopper": SimpleNamespace(TensorDescriptor=_Descriptor),
        }

        def import_(name: str, *arguments: Any) -> Any:
            return stand_ins.get(name) or builtins.__import__(name, *arguments)

        namespace: dict[str, Any] = {"__builtins__": {**vars(builtins), "__import__": import_}}
        exec(compile(text, "<rendered>", "exec"), namespace)
        return SimpleNamespace(**namespace)


def _expect(barrier: _Barrier, size: int) -> None:
    barrier.bytes += size
    barrier.arrive()


def _init(barrier: _Barrier, count: int) -> None:
    barrier.count = barrier.pending = count


class _Pointer:
    """Into a contiguous tensor."""

    def __init__(self, tensor: torch.Tensor, offsets: Any = 0) -> None:
        self.tensor, self.offsets = tensor, offsets

    def __add__(self, other: Any) -> _Pointer:
        return _Pointer(self.tensor, self.offsets + other)

    def store(self, values: Any, mask: Any) -> None:
        self.tensor.numpy().reshape(-1)[np.asarray(self.offsets)[mask]] = values[mask]


def _jit(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda each: each


def _gluon(machine: Machine) -> SimpleNamespace:
    reduced = {"sum": np.sum, "max": np.max}
    language = SimpleNamespace(
        constexpr=_constexpr, static_range=range, float16=np.float16, bfloat16=None, float32=np.float32,
        int32=np.int32, int64=np.int64, NVMMADistributedLayout=_Layout, SliceLayout=_Layout, DotOperandLayout=_Layout,
        NVMMASharedLayout=SimpleNamespace(get_default_for=lambda *_: _Layout()),
        allocate_shared_memory=machine.allocate, warp_specialize=machine.specialize, inline_asm_elementwise=machine.assembly,
        program_id=lambda axis: machine._program, num_programs=lambda axis: machine._programs,
        zeros=lambda shape, *_: _tile(np.zeros(shape, np.float32)),
        full=lambda shape, value, *_: _tile(np.full(shape, value, np.float32)),
        arange=lambda start, end, layout: _tile(np.arange(start, end)),
        where=lambda test, yes, no: _tile(np.where(test, yes, no)) if np.ndim(test) else (no, yes)[bool(test)],
        minimum=lambda a, b: np.minimum(a, b) if np.ndim(a) else min(a, b),
        maximum=lambda a, b: np.maximum(a, b) if np.ndim(a) else max(a, b),
        exp2=np.exp2, log2=np.log2, reshape=np.reshape, expand_dims=lambda x, axis: np.expand_dims(x, axis),
        convert_layout=lambda x, layout: x, cast=lambda value, dtype: value,
        store=_Pointer.store,
        **{name: (lambda x, axis, f=f: _tile(f(x, axis=axis))) for name, f in reduced.items()},
    )  # fmt: skip

    hopper = SimpleNamespace(
        fence_async_shared=machine.fence, warpgroup_mma=machine.multiply, warpgroup_mma_wait=machine.multiply_wait,
        mbarrier=SimpleNamespace(
            MBarrierLayout=_BarrierLayout, init=_init, expect=_expect, arrive=_Barrier.arrive,
            wait=lambda barrier, phase: machine.wait_until(lambda: barrier.phase != phase),
        ),
        tma=SimpleNamespace(async_load=machine.load, async_store=machine.store, store_wait=lambda _: None),
    )  # fmt: skip
    return SimpleNamespace(jit=_jit, constexpr_function=_jit, language=language, hopper=hopper)

"""What Gluon programs handle, on the CPU: registers, shared memory, barriers, descriptors, results in flight."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


class ProtocolError(AssertionError):
    """The module broke a rule of the hardware."""


class Tile(np.ndarray):  # type: ignore[type-arg]
    """A tensor in registers."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype: Any, bitcast: bool = False) -> Tile:
        """Rounded; floats are computed on in fp32 all the same."""
        cast = np.ascontiguousarray(self).view(dtype) if bitcast else self.astype(dtype)
        return tile(cast.astype(np.float32) if np.issubdtype(dtype, np.floating) else cast)


def tile(value: Any) -> Tile:
    return np.asarray(value).view(Tile)


class Int(int):
    value = property(int)

    def to(self, dtype: Any) -> Int:
        return self


class Float(float):
    value = property(float)


class Layout:
    def __init__(self, *arguments: Any) -> None:
        self.value = self


class BarrierLayout(Layout):
    pass


def constexpr(value: Any) -> Any:
    if isinstance(value, Layout):
        return value
    return Float(value) if isinstance(value, float) else Int(value)


class Descriptor:
    """A TMA descriptor of a CPU tensor."""

    layout = Layout()

    def __init__(self, base: torch.Tensor, shape: Sequence[int], strides: Sequence[int], block: Sequence[int], _: Any):
        assert all(stride * base.element_size() % 16 == 0 and stride for stride in strides[:-1])
        self.shape, self.block = shape, block
        self.base = torch.as_strided(base, shape, strides, base.storage_offset())
        self.dtype = base.numpy().dtype

    def boxes(self, start: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """What of the tensor lies in the block at ``start``, and where in the block that is."""
        ends = [min(first + width, size) for first, width, size in zip(start, self.block, self.base.shape, strict=True)]
        inside = [max(end - first, 0) for first, end in zip(start, ends, strict=True)]
        source = tuple(slice(first, first + count) for first, count in zip(start, inside, strict=True))
        return source, tuple(slice(0, count) for count in inside)


class Buffer:
    """Shared memory that is filled and read as a whole."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.data = np.full(shape, np.nan, dtype=dtype)
        self.readers = 0
        self.unfenced_writer: threading.Thread | None = None


class View:
    """A buffer, seen in another shape."""

    def __init__(self, buffer: Buffer, see: Callable[[Any], Any]) -> None:
        self.buffer, self._see = buffer, see
        self.dtype = buffer.data.dtype

    def reshape(self, shape: Sequence[int]) -> View:
        return View(self.buffer, lambda data: self._see(data).reshape(shape))

    def permute(self, order: Sequence[int]) -> View:
        return View(self.buffer, lambda data: self._see(data).transpose(order))

    def slice(self, start: int, length: int, dim: int) -> View:
        part = (slice(None),) * dim + (slice(start, start + length),)
        return View(self.buffer, lambda data: self._see(data)[part])

    def read(self) -> Tile:
        return tile(self._see(self.buffer.data).astype(np.float32))

    def load(self, layout: Layout) -> Tile:
        return self.read()

    def store(self, value: Tile) -> None:
        if self.buffer.readers:
            raise ProtocolError("shared memory is written while it may be read")
        self._see(self.buffer.data)[...] = value
        self.buffer.unfenced_writer = threading.current_thread()


class Barrier:
    def __init__(self) -> None:
        self.count = self.pending = self.bytes = self.phase = 0

    def start(self, count: int) -> None:
        self.count = self.pending = count

    def expect(self, size: int) -> None:
        """An arrival, and so many bytes to come."""
        self.bytes += size
        self.arrive()

    def arrive(self, count: int = 1, pred: bool = True) -> None:
        self.pending -= count if pred else 0
        if self.pending < 0:
            raise ProtocolError("too many arrivals at an mbarrier")
        self.complete()

    def complete(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count


class Ring:
    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self.dtype = getattr(items[0], "dtype", None)

    def index(self, at: int) -> Any:
        return self._items[at]


class InFlight:
    """What a wgmma will give. It has no value until it is waited for."""

    value: Tile | None = None

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ProtocolError("a wgmma's result is used before its wait")

    __mul__ = __array__ = __getattr__ = _refuse

    def __init__(self, a: View | Tile, b: View, accumulator: Any, use_acc: bool) -> None:
        self._operands, self._accumulator, self._use_acc = (a, b), accumulator, use_acc
        for view in self._views():
            view.buffer.readers += 1

    def _views(self) -> list[View]:
        return [operand for operand in self._operands if isinstance(operand, View)]

    def finish(self) -> None:
        a, b = (operand.read() if isinstance(operand, View) else operand for operand in self._operands)
        before = self._accumulator.value if isinstance(self._accumulator, InFlight) else self._accumulator
        product = a @ b
        self.value = tile(before + product if self._use_acc else product)
        for view in self._views():
            view.buffer.readers -= 1


class Pointer:
    """Into a tensor's memory."""

    def __init__(self, tensor: torch.Tensor, offsets: Any = 0) -> None:
        self.tensor, self.offsets = tensor, offsets
        self.dtype = SimpleNamespace(element_ty=torch.empty(0, dtype=tensor.dtype).numpy().dtype)

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.tensor, self.offsets + other)

    def to(self, dtype: Any) -> Pointer:
        """As an integer it points to the same number."""
        return self

    def add(self, offsets: Any, values: Any) -> None:
        """As red.global.add does."""
        flat = self._flat()
        if offsets.min() < 0 or offsets.max() >= flat.size:
            raise ProtocolError("an addition out of bounds")
        np.add.at(flat, offsets, values)

    def store(self, values: Any, mask: Any = True) -> None:
        offsets, values, mask = np.broadcast_arrays(np.asarray(self.offsets), values, mask)
        flat, offsets = self._flat(), offsets[mask]
        if offsets.size and (offsets.min() < 0 or offsets.max() >= flat.size):
            raise ProtocolError("a store out of bounds")
        flat[offsets] = values[mask]

    def load(self, mask: Any = True, other: float = np.nan) -> Tile:
        offsets, mask = np.broadcast_arrays(np.asarray(self.offsets), mask)
        loaded = np.full(offsets.shape, other, np.float32)
        loaded[mask] = self._flat()[offsets[mask]]
        return tile(loaded)

    def _flat(self) -> Any:
        """The memory from the tensor's first element on, as far as strides reach."""
        reach = sum((size - 1) * stride for size, stride in zip(self.tensor.shape, self.tensor.stride(), strict=True))
        return self.tensor.as_strided((reach + 1,), (1,)).numpy()


def reduce_fragments(text: str, values: Tile, addresses: Pointer) -> None:
    """Assembly that adds each thread's numbers of a wgmma's result to global memory, from its first address on."""
    rows, width = values.shape
    count = width // 2
    # (warp, lane // 4, lane % 4) and a thread's registers (of 8 columns, half, of 2)
    by_thread = (rows // 16, 2, 8, width // 8, 4, 2), (0, 2, 4, 3, 1, 5), (rows * 2, count)
    numbers, offsets = (
        np.broadcast_to(each, (rows, width)).reshape(by_thread[0]).transpose(by_thread[1]).reshape(by_thread[2])
        for each in (np.asarray(values), np.asarray(addresses.offsets))
    )
    if np.isnan(numbers).any():
        raise ProtocolError("a number that is none is added to global memory")
    pattern = r"red\.relaxed\.gpu\.global\.add\.v4\.f32 \[\$(\d+) \+ (\d+)\], \{([^}]*)\};"
    for address, bytes_on, operands in re.findall(pattern, text):
        first = offsets[:, int(address) - 2 * count] + int(bytes_on) // 4
        if (first % 4).any():
            raise ProtocolError("an addition of 16 bytes to an address that is no multiple")
        for index, operand in enumerate(operands.split(", ")):
            addresses.add(first + index, numbers[:, int(operand[1:]) - count])

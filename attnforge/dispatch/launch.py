"""The launches of one call, held: compiled kernels with everything fixed but the tensors' addresses.

``kernel[grid](...)`` of a JITFunction takes 14-22 us of host time, because it works out at every call what it has to be
specialised on; a held kernel takes about 2. The price: whoever holds it must only use it for tensors of the very
dtypes, shapes, strides and 16-byte alignment that it was first launched with, which is what the memo's key is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.runtime import driver

from attnforge.dispatch.errors import ForeignTensorError, PlanRefusedError

Tensors = tuple[torch.Tensor, ...]


class Output(NamedTuple):
    """A tensor that a call allocates for its kernels to write."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def like(cls, tensor: torch.Tensor, last_dim: int | None = None) -> Output:
        """Dense, with the dims in memory in the order of ``tensor``'s, as torch.empty_like: BSHD views stay BSHD.

        ``last_dim`` replaces the size of the last dim, which must be contiguous.
        """
        size, stride = tuple(tensor.shape), torch.empty_like(tensor, device="meta").stride()
        if last_dim is not None:
            stride = (*(step * last_dim // size[-1] for step in stride[:-1]), 1)
            size = (*size[:-1], last_dim)
        return cls(size, stride, tensor.dtype)

    @classmethod
    def float32(cls, *size: int) -> Output:
        """Contiguous."""
        return cls(size, torch.empty(size, device="meta").stride(), torch.float32)

    def allocate(self, device: torch.device) -> torch.Tensor:
        """Uninitialised memory for it."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)


class _View(NamedTuple):
    """A part of an argument that a kernel takes as a tensor of its own."""

    argument: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, arguments: Tensors) -> torch.Tensor:
        whole = arguments[self.argument]
        return whole.as_strided(self.size, self.stride, whole.storage_offset() + self.offset)


class _Description:
    """An argument as a kernel takes it by TMA: a descriptor object of Triton's, which names the tensor and a block.

    Triton encodes it for the GPU at every launch, from these fields and the tensor's address. Objects are lent to a
    call and taken back after it: to make the four of a call costs 1.6 us more, and their own __init__, which checks
    again what the memo's key has fixed, 8.
    """

    __slots__ = ("_argument", "_fields", "_idle", "_type")

    def __init__(self, argument: int, descriptor: Any) -> None:
        self._argument = argument
        self._type = type(descriptor)
        self._fields = {name: value for name, value in vars(descriptor).items() if name != "base"}
        self._idle: list[Any] = []

    def of(self, arguments: Tensors) -> Any:
        try:
            descriptor = self._idle.pop()
        except IndexError:  # another thread's call has it
            descriptor = object.__new__(self._type)
            vars(descriptor).update(self._fields)
        descriptor.base = arguments[self._argument]
        return descriptor

    def take_back(self, descriptor: Any) -> None:
        descriptor.base = None  # or it would keep the tensor's memory
        self._idle.append(descriptor)


class _HeldKernel:
    """One kernel of a call."""

    __slots__ = ("_compiled", "_function", "_grid", "_metadata", "_pick", "_run", "_scalars")

    def __init__(self, compiled: Any, grid: tuple[int, int, int], pick: Callable[[Tensors], Tensors], scalars: Any):
        self._compiled = compiled
        self._grid = grid
        self._pick = pick
        self._scalars = tuple(scalars)
        # What CompiledKernel.__getitem__ fetches at every call; it also builds launch metadata that only hooks read.
        self._run, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata

    def __call__(self, stream: int, tensors: Tensors) -> None:
        if _is_profiled():
            self._compiled[self._grid](*self._pick(tensors), *self._scalars)
            return
        self._run(
            *self._grid, stream, self._function, self._metadata, None, None, None, *self._pick(tensors), *self._scalars
        )


class Launch:
    """A call that was made before: allocates its outputs and launches its kernels. Thread-safe."""

    __slots__ = ("_current_stream", "_descriptions", "_device", "_index", "_kernels", "_outputs", "_views")

    def __init__(
        self, device: torch.device, kernels: Sequence[_HeldKernel], outputs: Sequence[Output],
        views: Sequence[_View | _Description],
    ) -> None:  # fmt: skip
        self._device = device
        self._index = device.index
        self._kernels = tuple(kernels)
        self._outputs = tuple(outputs)
        self._views = tuple(views)
        self._descriptions = tuple((view, at) for at, view in enumerate(views) if isinstance(view, _Description))
        self._current_stream = driver.active.get_current_stream

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Run on inputs that agree with the first call's in all that the memo's key holds; returns the outputs."""
        if torch.cuda.current_device() != self._index:
            with torch.cuda.device(self._index):
                return self(*inputs)
        device = self._device
        # Output.allocate written out: this is the path of every call.
        outputs = tuple(
            [torch.empty_strided(size, stride, dtype=dtype, device=device) for size, stride, dtype in self._outputs]
        )
        tensors = inputs + outputs
        if self._views:
            views = [view.of(tensors) for view in self._views]
            tensors += tuple(views)
        stream = self._current_stream(self._index)
        for kernel in self._kernels:
            kernel(stream, tensors)
        for description, at in self._descriptions:
            description.take_back(views[at])
        return outputs


class InterpretedLaunch:
    """The same in Triton's interpreter, where there is nothing to hold but the module."""

    __slots__ = ("_module", "_outputs", "_softmax_scale")

    def __init__(self, module: ModuleType, outputs: Sequence[Output], softmax_scale: float) -> None:
        self._module = module
        self._outputs = tuple(outputs)
        self._softmax_scale = softmax_scale

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Run on inputs of the first call's shapes; returns the outputs."""
        outputs = tuple(output.allocate(inputs[0].device) for output in self._outputs)
        for kernel, grid, tensors, scalars, options in self._module.plan(*inputs, *outputs, self._softmax_scale):
            kernel[grid](*tensors, *scalars, **options)
        return outputs


def first_launch(
    module: ModuleType, inputs: Tensors, outputs: Sequence[Output], softmax_scale: float
) -> tuple[Tensors, Launch]:
    """Compile and run a rendered module's kernels on CUDA tensors; its outputs, and the launch to hold.

    The arguments of the module's plan() are inputs, then outputs, then the scale. Raises PlanRefusedError, and what
    Triton raises when a kernel cannot be compiled or needs more than the device has.
    """
    device = inputs[0].device
    with torch.cuda.device(device):
        results = tuple(output.allocate(device) for output in outputs)
        # One object an argument, also in attention(x, x, x): below they are told apart by identity.
        arguments = tuple(tensor.detach() for tensor in (*inputs, *results))
        views: list[_View | _Description] = []
        kernels = []
        try:
            launches = module.plan(*arguments, softmax_scale)
        except ValueError as error:
            raise PlanRefusedError(module, error) from error
        for kernel, grid, tensors, scalars, options in launches:
            pick = _picker(module, tensors, arguments, views)
            compiled = kernel[grid](*tensors, *scalars, **options)
            kernels.append(_HeldKernel(compiled, grid, pick, scalars))
    return results, Launch(device, kernels, outputs, views)


def _picker(
    module: ModuleType, tensors: Tensors, arguments: Tensors, views: list[_View | _Description]
) -> Callable[[Tensors], Tensors]:
    """What takes a kernel's tensors out of a call's arguments and views; new views are appended to ``views``."""
    indices = [_index(module, tensor, arguments, views) for tensor in tensors]
    if len(indices) == 1:  # itemgetter would give a bare tensor
        return lambda every: (every[indices[0]],)
    pick: Callable[[Tensors], Tensors] = itemgetter(*indices)
    return pick


def _index(module: ModuleType, tensor: Any, arguments: Tensors, views: list[_View | _Description]) -> int:
    is_described = not isinstance(tensor, torch.Tensor)
    for index, argument in enumerate(arguments):
        if (tensor.base if is_described else tensor) is argument:
            if not is_described:
                return index
            views.append(_Description(index, tensor))
            return len(arguments) + len(views) - 1
    if is_described:
        raise ForeignTensorError(module)
    storage = tensor.untyped_storage().data_ptr()
    owners = [i for i, argument in enumerate(arguments) if argument.untyped_storage().data_ptr() == storage]
    if len(owners) != 1:
        raise ForeignTensorError(module)
    offset = tensor.storage_offset() - arguments[owners[0]].storage_offset()
    view = _View(owners[0], tuple(tensor.shape), tensor.stride(), int(offset))
    if view not in views:
        views.append(view)
    return len(arguments) + views.index(view)


def _is_profiled() -> bool:
    """Whether anybody (Proton, for one) listens to Triton's launches."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))

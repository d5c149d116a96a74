"""Problem -> decision -> launch, memoised: a call made before costs a dictionary look-up and a held launch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import ModuleType

import torch

from attnforge.codegen import AttentionSpec, Pass
from attnforge.dispatch import first_call
from attnforge.dispatch.errors import ColdCaptureError, ForkedProcessError
from attnforge.dispatch.launch import InterpretedLaunch, Launch, Output, Tensors
from attnforge.dispatch.surroundings import Surroundings
from attnforge.problem import Problem
from attnforge.validation import check_arguments

MEMO_LIMIT = 4096
"""Launches that are held, a few KB each; one more, and all of them are forgotten and made again as they come."""

Key = tuple[object, ...]


class Dispatcher:
    """Launches the right kernel for each call. Thread-safe."""

    def __init__(self, read_surroundings: Callable[[], Surroundings] = Surroundings.read) -> None:
        self._read_surroundings = read_surroundings
        self._surroundings: Surroundings | None = None
        self._memo: dict[Key, Launch | InterpretedLaunch] = {}
        self._lock = threading.RLock()
        self._forked_from_cuda = False

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, softmax_scale: float | None,
        deterministic: bool, needs_grad: bool,
    ) -> Tensors:  # fmt: skip
        """(out, lse) of attention(); ``needs_grad`` makes sure that there is a backward before anything is launched.

        Raises UnsupportedInputError, KernelNotGeneratedError, NoWorkingConfigError, ColdCaptureError,
        ForkedProcessError.
        """
        # The key holds everything that kernels are specialised on and that validation looks at. Of an address that is
        # whether 16 divides it, which it nearly always does for all three: one test then does for them together.
        try:
            misaligned = (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15
            key = (
                q.dtype, q.device, q.shape, q.stride(), type(q),
                k.dtype, k.device, k.shape, k.stride(), type(k),
                v.dtype, v.device, v.shape, v.stride(), type(v),
                misaligned and (q.data_ptr() & 15, k.data_ptr() & 15, v.data_ptr() & 15),
                causal, softmax_scale, deterministic, needs_grad,
            )  # fmt: skip
            launch = self._memo.get(key)
        except (AttributeError, RuntimeError, TypeError):  # no tensors, none with memory, or options that have no hash
            self._check(q, k, v, causal, softmax_scale, deterministic)
            raise
        if launch is not None:
            return launch(q, k, v)
        return self._first_forward(key, q, k, v, causal, softmax_scale, deterministic, needs_grad)

    def backward(
        self, dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
        lse: torch.Tensor, causal: bool, softmax_scale: float | None, deterministic: bool,
    ) -> Tensors:  # fmt: skip
        """(dq, dk, dv) from the gradient of out, and from what forward() was given and gave. Raises likewise."""
        # Saved tensors may come back in another layout (torch.autograd.graph.save_on_cpu): all of them are in the key.
        inputs = (dout, q, k, v, out, lse)
        key = (
            *[(t.dtype, t.device, t.shape, t.stride(), t.data_ptr() & 15) for t in inputs],
            causal, softmax_scale, deterministic,
        )  # fmt: skip
        launch = self._memo.get(key)
        if launch is not None:
            return launch(*inputs)[:3]
        return self._first_backward(key, inputs, causal, softmax_scale, deterministic)

    def reload(self) -> None:
        """Forget every launch and tuned cache: the next call reads the environment and the caches again."""
        with self._lock:
            self._surroundings = None
            self._memo.clear()

    def after_fork(self, parent_used_cuda: bool) -> None:
        """To be called in a forked child: what is held belongs to its parent, and the lock may be taken for good."""
        self._lock = threading.RLock()
        self._memo.clear()
        self._forked_from_cuda |= parent_used_cuda

    @property
    def surroundings(self) -> Surroundings:
        """What this process dispatches with."""
        if self._surroundings is None:
            self._surroundings = self._read_surroundings()
        return self._surroundings

    def _check(self, q: object, k: object, v: object, causal: object, scale: object, deterministic: object) -> None:
        interpreted = self.surroundings.interpreted
        check_arguments(
            q, k, v, causal=causal, softmax_scale=scale, deterministic=deterministic, interpreted=interpreted
        )

    def _first_forward(
        self, key: Key, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, softmax_scale: float | None,
        deterministic: bool, needs_grad: bool,
    ) -> Tensors:  # fmt: skip
        self._check(q, k, v, causal, softmax_scale, deterministic)
        if q.numel() == 0 or k.shape[2] == 0:
            out = q.new_zeros(*q.shape[:3], v.shape[3])
            return out, torch.full(q.shape[:3], float("-inf"), dtype=torch.float32, device=q.device)
        if not all(_has_contiguous_rows(tensor) for tensor in (q, k, v)):
            q, k, v = map(_with_contiguous_rows, (q, k, v))
            return self.forward(q, k, v, causal, softmax_scale, deterministic, needs_grad)
        spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=q.shape[3], head_dim_v=v.shape[3], causal=causal)
        if needs_grad:
            self.surroundings.kernels.check_generated(_of_pass(spec, Pass.BACKWARD))

        def outputs_of(_: ModuleType) -> list[Output]:
            return [Output.like(q, last_dim=v.shape[3]), Output.float32(*q.shape[:3])]

        return self._first_call(key, spec, (q, k, v), (q, k, v), softmax_scale, outputs_of, deterministic)

    def _first_backward(
        self, key: Key, inputs: Tensors, causal: bool, softmax_scale: float | None, deterministic: bool
    ) -> Tensors:
        dout, q, k, v, out, lse = inputs
        if q.numel() == 0 or k.shape[2] == 0:
            return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        if not (lse.is_contiguous() and all(_has_contiguous_rows(tensor) for tensor in inputs[:-1])):
            dout, q, k, v, out = map(_with_contiguous_rows, inputs[:-1])
            return self.backward(dout, q, k, v, out, lse.contiguous(), causal, softmax_scale, deterministic)
        spec = AttentionSpec(pass_=Pass.BACKWARD, head_dim=q.shape[3], head_dim_v=v.shape[3], causal=causal)

        def outputs_of(module: ModuleType) -> list[Output]:
            return [Output.like(q), Output.like(k), Output.like(v), Output.float32(*module.workspace_shape(q))]

        return self._first_call(key, spec, (q, k, v), inputs, softmax_scale, outputs_of, deterministic)[:3]

    def _first_call(
        self, key: Key, spec: AttentionSpec, qkv: Tensors, inputs: Tensors, softmax_scale: float | None,
        outputs_of: Callable[[ModuleType], list[Output]], deterministic: bool,
    ) -> Tensors:  # fmt: skip
        with self._lock:
            launch = self._memo.get(key)
            if launch is not None:  # of another thread, meanwhile
                return launch(*inputs)
            self._check_device_is_ready(spec, inputs[0].device)
            self.surroundings.kernels.check_generated(spec)
            scale = spec.head_dim**-0.5 if softmax_scale is None else float(softmax_scale)
            call = first_call.Call(spec, Problem.of_tensors(*qkv), scale, inputs, outputs_of, deterministic)
            outputs, launch = first_call.make(call, self.surroundings)
            if len(self._memo) >= MEMO_LIMIT:
                self._memo.clear()
            self._memo[key] = launch
            return outputs

    def _check_device_is_ready(self, spec: AttentionSpec, device: torch.device) -> None:
        if device.type != "cuda":
            return
        if self._forked_from_cuda:
            raise ForkedProcessError
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                raise ColdCaptureError(spec)


def _has_contiguous_rows(tensor: torch.Tensor) -> bool:
    return tensor.stride(-1) == 1


def _with_contiguous_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if _has_contiguous_rows(tensor) else tensor.contiguous()


def _of_pass(spec: AttentionSpec, pass_: Pass) -> AttentionSpec:
    return AttentionSpec(pass_=pass_, head_dim=spec.head_dim, head_dim_v=spec.head_dim_v, causal=spec.causal)


class _Fork:
    """Tells the process's dispatcher about forks."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._used_cuda = False
        self._dispatcher = dispatcher
        os.register_at_fork(before=self._before, after_in_child=self._after_in_child)

    def _before(self) -> None:
        self._used_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]

    def _after_in_child(self) -> None:
        self._dispatcher.after_fork(self._used_cuda)


DISPATCHER = Dispatcher()
"""This process's."""
_FORK = _Fork(DISPATCHER)

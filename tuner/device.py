"""What a worker measures on, and how it answers requests whatever the device does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from attnforge.codegen import CodegenError, DType, Variant
from attnforge.compilation import Failure, FailureKind
from attnforge.problem import Problem
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


class Device(Protocol):
    """Something that variants run on. Whatever its methods raise becomes a Failure, of the kind that it says."""

    def identify(self) -> Identity | NoDevice:
        """What it is, once it is open: what raises here raises before anything was asked of it."""

    def measure(self, variant: Variant, problem: Problem, best_ms: dict[str, float]) -> Measurement | Failure:
        """Check a variant on whole blocks, then time its kernels on a problem."""

    def compare(
        self, variants: Sequence[Variant], problem: Problem, seed: int, own_processes: Sequence[int]
    ) -> Comparison | Failure:
        """Time variants in turns on a problem, and say what the device was like meanwhile."""

    def check(self, variant: Variant, dtype: DType) -> Accurate | Failure:
        """Put a variant through the whole accuracy gate."""

    def kind_of(self, error: Exception) -> FailureKind:
        """What sort of failure an exception is."""

    def is_usable(self) -> bool:
        """Whether anything can still run on it: after an illegal access a GPU's context is lost."""


def answer(device: Device, frame: bytes) -> bytes:
    """The reply to a request, both as JSON."""
    return msgspec.json.encode(_reply(device, msgspec.json.decode(frame, type=Request)))


def _reply(device: Device, request: Request) -> Reply:
    try:
        reply = _run(device, request)
    except (CodegenError, msgspec.ValidationError) as error:
        return Failure(FailureKind.INVALID, str(error))
    except Exception as error:  # torch and triton raise dozens of types; each is this config's failure, told in full
        reply = Failure(device.kind_of(error), f"{type(error).__name__}: {error}")
    if isinstance(reply, Failure) and (isinstance(request, Identify) or not device.is_usable()):
        return Fatal(Failure(FailureKind.CRASH, reply.message))
    return reply


def _run(device: Device, request: Request) -> Reply:
    match request:
        case Identify():
            return device.identify()
        case Measure():
            return device.measure(request.variant.variant, request.problem, request.best_ms)
        case Compare():
            variants = [data.variant for data in request.variants]
            return device.compare(variants, request.problem, request.seed, request.own_processes)
        case CheckNumerics():
            return device.check(request.variant.variant, request.dtype)

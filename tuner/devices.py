"""The GPUs that a tune measures on: one worker each, and whichever is free takes the next trial."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from attnforge.compilation import Failure
from attnforge.errors import NoGpuError
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.measurer import Measurer, WorkerUnusableError
from attnforge.tuner.messages import Accurate, CheckNumerics, Identity, Measure

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Devices:
    """All visible GPUs of one kind. Used as a context manager, which ends their workers."""

    def __init__(self, first: Measurer) -> None:
        """``first`` measures on the first GPU, and says how many there are."""
        self.measurers = [first]
        self._busy: set[int] = set()
        self._waiting: list[_Turn] = []

    async def identify(self) -> Identity:
        """What the first GPU is. The others of its kind are taken too; one that is of another kind, or does not answer,
        is left alone. Raises NoGpuError, or WorkerUnusableError."""
        first = self.measurers[0]
        identity = await first.identify()
        others = [first.with_environment(seeing(first.environment, place)) for place in range(1, identity.devices)]
        self.measurers += others
        targets = await asyncio.gather(*map(_target_of, others))
        for measurer, target in zip(others, targets, strict=True):
            if target != identity.target:
                measurer.close()
                self.measurers.remove(measurer)
        return identity

    async def measure(self, request: Measure) -> Measurement | Failure:
        """The times of a config on one of the GPUs, or why it has none."""
        async with self._taken() as measurer:
            return await measurer.measure(request)

    async def check(self, request: CheckNumerics) -> Accurate | Failure:
        """Whether a config passes the whole accuracy gate on one of them."""
        async with self._taken() as measurer:
            return await measurer.check(request)

    @asynccontextmanager
    async def alone(self, measurer: Measurer) -> AsyncIterator[None]:
        """Keeps one GPU's measurer from being asked meanwhile: somebody else has that GPU to themselves."""
        async with self._taken(measurer):
            yield

    def close(self) -> None:
        """Kill all workers."""
        with ExitStack() as stack:
            for measurer in self.measurers:
                stack.callback(measurer.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @asynccontextmanager
    async def _taken(self, wanted: Measurer | None = None) -> AsyncIterator[Measurer]:
        """A free one, or the one that is wanted as soon as it is free. Who has waited longest goes first."""
        turn = _Turn(wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._hand_out()
        try:
            yield await turn.given
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if turn.given.done() and not turn.given.cancelled():
                self._busy.discard(id(turn.given.result()))
            self._hand_out()

    def _hand_out(self) -> None:
        for turn in tuple(self._waiting):
            may_have = self.measurers if turn.wanted is None else [turn.wanted]
            free = next((measurer for measurer in may_have if id(measurer) not in self._busy), None)
            if free is not None and not turn.given.done():
                self._busy.add(id(free))
                self._waiting.remove(turn)
                turn.given.set_result(free)


@dataclass(frozen=True, eq=False)
class _Turn:
    """Somebody who waits for a measurer."""

    wanted: Measurer | None
    given: asyncio.Future[Measurer]


def seeing(environment: Mapping[str, str], place: int) -> dict[str, str]:
    """An environment whose processes see one GPU alone, by its place among those that are visible."""
    listed = [name.strip() for name in environment.get(VISIBLE, "").split(",") if name.strip()]
    return {**environment, VISIBLE: listed[place] if listed else str(place)}


async def _target_of(measurer: Measurer) -> object:
    try:
        return (await measurer.identify()).target
    except (NoGpuError, WorkerUnusableError):
        return None

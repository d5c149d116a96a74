"""The GPUs that a tune measures on: one worker each, and whichever is free takes the next trial."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from attnforge.compilation import Failure
from attnforge.errors import NoGpuError
from attnforge.tuner.device_errors import DeviceLostError, DeviceLostWarning, WorkerUnusableError
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Accurate, CheckNumerics, Identity, Measure

VISIBLE = "CUDA_VISIBLE_DEVICES"
_Answer = TypeVar("_Answer")


class Devices:
    """All visible GPUs of one kind. Used as a context manager, which ends their workers.

    One that is lost is left out from then on, and what was to run on it runs on another. When none is left, whoever
    asks or waits gets the WorkerUnusableError of the last.
    """

    def __init__(self, first: Measurer) -> None:
        """``first`` measures on the first GPU, and says how many there are."""
        self.measurers = [first]
        self._last_error: WorkerUnusableError | None = None
        """Why none is left."""
        self._busy: set[Measurer] = set()
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
        return await self._ask(lambda measurer: measurer.measure(request))

    async def check(self, request: CheckNumerics) -> Accurate | Failure:
        """Whether a config passes the whole accuracy gate on one of them."""
        return await self._ask(lambda measurer: measurer.check(request))

    @asynccontextmanager
    async def alone(self, measurer: Measurer) -> AsyncIterator[None]:
        """Keeps one GPU's measurer from being asked meanwhile: somebody else has that GPU to themselves.

        Once that GPU is lost it is the one that stands in for it, which Measurer.another() is of as well: so who has
        waited neither hangs nor has to know.
        """
        async with self._taken(measurer) as taken:
            try:
                yield
            except DeviceLostError as error:
                # Another's, when it comes of a worker that was started before the GPU in hand stood in.
                if taken.is_on(error.identity):
                    self._leave_out(taken, error)
                raise

    def close(self) -> None:
        """Kill all workers."""
        with ExitStack() as stack:
            for measurer in self.measurers:
                stack.callback(measurer.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def _ask(self, question: Callable[[Measurer], Awaitable[_Answer]]) -> _Answer:
        """Whichever is free; another, when that one turns out to be lost before it could begin."""
        while True:
            async with self._taken() as measurer:
                try:
                    return await question(measurer)
                except WorkerUnusableError as error:
                    self._leave_out(measurer, error)

    def _leave_out(self, lost: Measurer, error: WorkerUnusableError) -> None:
        """Go on without it. Raises the error when none is left."""
        self.measurers.remove(lost)
        if not self.measurers:
            self._last_error = error
            lost.give_up(error)
            raise error
        lost.give_up(self.measurers[0])
        warnings.warn(DeviceLostWarning(error, len(self.measurers)), stacklevel=2)

    @asynccontextmanager
    async def _taken(self, wanted: Measurer | None = None) -> AsyncIterator[Measurer]:
        """A free one, or the one that is wanted (or who stands in for it) as soon as it is free. Who has waited longest
        goes first."""
        turn = _Turn(wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._hand_out()
        try:
            yield await turn.given
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if turn.given.done() and not turn.given.cancelled() and turn.given.exception() is None:
                self._busy.discard(turn.given.result())
            self._hand_out()

    def _hand_out(self) -> None:
        for turn in tuple(self._waiting):
            if turn.given.done():
                continue
            if self._last_error is not None:
                turn.given.set_exception(self._last_error)
                continue
            may_have = self.measurers if turn.wanted is None else [turn.wanted.present]
            free = next((measurer for measurer in may_have if measurer not in self._busy), None)
            if free is not None:
                self._busy.add(free)
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

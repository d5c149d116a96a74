"""Makes the final comparison in fresh measuring workers: what a worker has been through, and where it happens to have
placed its memory, must not decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import msgspec

from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.device_errors import DeviceLostError
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Compare, Comparison

COMPARING_WORKERS = 2
"""Each compares all problems of a spec. Two can contradict each other, which one cannot; a third would shrink the
interval by a fifth and cost half as much again."""


class Comparer:
    """Compares on the device of a measurer, which waits meanwhile. Used as a context manager.

    A worker takes seconds to import torch, so those of the next comparison start while configs are still searched for.
    """

    def __init__(self, measurer: Measurer, alone: Callable[[], AbstractAsyncContextManager[object]]) -> None:
        """``alone`` keeps the measurer from using its device meanwhile."""
        self._measurer = measurer
        self._alone = alone
        self._spares: list[Measurer] = []
        self._expected = 0

    def expect(self) -> None:
        """A spec's search begins: one more comparison is to come."""
        self._expected += 1
        self._start_ahead()

    async def compare(self, requests: Sequence[Compare]) -> list[tuple[Comparison, ...] | Failure]:
        """For each request what COMPARING_WORKERS fresh workers have measured, or why one of them could not."""
        self._expected -= 1
        found: list[list[Comparison] | Failure] = [[] for _ in requests]
        for number in range(COMPARING_WORKERS):
            left = [place for place, so_far in enumerate(found) if not isinstance(so_far, Failure)]
            if left:
                replies = await self._in_fresh_worker([requests[place] for place in left], number)
                for place, reply in zip(left, replies, strict=True):
                    so_far = found[place]
                    assert not isinstance(so_far, Failure)
                    found[place] = reply if isinstance(reply, Failure) else [*so_far, reply]
        self._start_ahead()
        return [so_far if isinstance(so_far, Failure) else tuple(so_far) for so_far in found]

    def close(self) -> None:
        """End the workers that were started ahead."""
        while self._spares:
            self._spares.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _start_ahead(self) -> None:
        """For the next comparison alone: a worker that waits holds half a gigabyte of memory."""
        while self._expected > 0 and len(self._spares) < COMPARING_WORKERS:
            self._spares.append(self._measurer.another())

    async def _in_fresh_worker(self, requests: Sequence[Compare], number: int) -> list[Comparison | Failure]:
        """On another device, when the measurer's is lost meanwhile. Raises WorkerUnusableError when none is left."""
        while True:
            with self._spares.pop(0) if self._spares else self._measurer.another() as fresh:
                try:
                    why_not = await fresh.wake()
                    async with self._alone():
                        if why_not is not None:
                            raise why_not
                        return [await _compare(fresh, request, number) for request in requests]
                except DeviceLostError:
                    self.close()  # those started ahead are on the lost device as well; another() is on one that is left


async def _compare(worker: Measurer, request: Compare, number: int) -> Comparison | Failure:
    """In an order of its own for each worker."""
    request = msgspec.structs.replace(request, seed=request.seed + number)
    reply = await worker.compare(request)
    # All of them have run before, so a crash may be an accident; but a hang takes a whole deadline.
    may_be_accident = isinstance(reply, Failure) and reply.kind is not FailureKind.TIMEOUT
    return await worker.compare(request) if may_be_accident else reply

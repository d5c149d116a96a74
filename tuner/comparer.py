"""Makes the final comparison in fresh measuring workers: what a worker has been through, and where it happens to have
placed its memory, must not decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import msgspec

from attnforge.compilation import Failure
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
        if not requests:
            return []
        replies = [await self._in_fresh_worker(requests, number) for number in range(COMPARING_WORKERS)]
        self._start_ahead()
        return [_all_or_failure(of_request) for of_request in zip(*replies, strict=True)]

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
        with self._spares.pop(0) if self._spares else self._measurer.another() as fresh:
            await fresh.wake()
            async with self._alone():
                return [await self._compare(fresh, request, number) for request in requests]

    async def _compare(self, worker: Measurer, request: Compare, number: int) -> Comparison | Failure:
        """In an order of its own for each worker."""
        own = tuple(each.process_id for each in (self._measurer, *self._spares) if each.process_id is not None)
        request = msgspec.structs.replace(request, seed=request.seed + number, own_processes=own)
        reply = await worker.compare(request)
        # All of them have run before, so a failure is an accident.
        return await worker.compare(request) if isinstance(reply, Failure) else reply


def _all_or_failure(replies: Sequence[Comparison | Failure]) -> tuple[Comparison, ...] | Failure:
    comparisons = tuple(reply for reply in replies if isinstance(reply, Comparison))
    return next((reply for reply in replies if isinstance(reply, Failure)), comparisons)

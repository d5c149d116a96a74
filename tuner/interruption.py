"""Runs a tune so that Ctrl-C and SIGTERM end it in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import FrameType


def run_until_interrupted(work: Coroutine[None, None, None]) -> bool:
    """Run ``work`` to its end, or cancel it at Ctrl-C or SIGTERM: then False, and Ctrl-C stays ignored, for the process
    is about to end.

    When several of its tasks fail, the first error is raised: it has cancelled the others.
    """
    interruption = _Interruption()
    before = {signum: signal.signal(signum, interruption.ask) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(interruption.cancels(work))
    except asyncio.CancelledError:
        before[signal.SIGINT] = signal.SIG_IGN
        return False
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return True


class _Interruption:
    """Cancels once, however often it is asked to: half of a clean-up would leave threads that wait for their workers,
    and Python waiting for those."""

    def __init__(self) -> None:
        self._is_asked = False
        self._task: asyncio.Task[None] | None = None

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if not self._is_asked and self._task is not None and not self._task.done():
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        self._is_asked = True

    async def cancels(self, work: Coroutine[None, None, None]) -> None:
        """Awaits ``work``, unless it was asked before that."""
        self._task = asyncio.current_task()
        if self._is_asked:
            work.close()
            raise asyncio.CancelledError
        await work

"""Runs a tune so that Ctrl-C, SIGTERM and a closed terminal end it in good order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from types import FrameType

from attnforge.cli import INTERRUPTED

PATIENCE_S = 10.0
"""For the clean-up, after which another signal ends the process at once: a database that no longer answers holds it up
for ever. Workers that are left then end by themselves."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_interrupted(work: Coroutine[None, None, None]) -> bool:
    """Run ``work`` to its end, or cancel it at one of SIGNALS: then False, and Ctrl-C stays ignored, for the process is
    about to end.

    When several of its tasks fail, the first error is raised: it has cancelled the others.
    """
    interruption = _Interruption()
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup, or a script's background job: whoever started it wants it to go on
            signal.signal(signum, interruption.ask)
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
        self._asked_at: float | None = None
        self._task: asyncio.Task[None] | None = None

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            if self._task is not None and not self._task.done():
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        elif time.monotonic() > self._asked_at + PATIENCE_S:
            # A live display has hidden the cursor.
            os.write(2, (b"\x1b[?25h" if os.isatty(2) else b"") + b"\ninterrupted, without waiting any longer\n")
            os._exit(INTERRUPTED)

    async def cancels(self, work: Coroutine[None, None, None]) -> None:
        """Awaits ``work``, unless it was asked before that."""
        self._task = asyncio.current_task()
        if self._asked_at is not None:
            work.close()
            raise asyncio.CancelledError
        await work

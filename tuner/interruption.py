"""Runs a tune so that Ctrl-C and SIGTERM end it in good order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine


def run_until_interrupted(work: Coroutine[None, None, None]) -> bool:
    """Run ``work`` to its end, or cancel it at Ctrl-C or SIGTERM: then False.

    When several of its tasks fail, the first error is raised: it has cancelled the others.
    """
    try:
        asyncio.run(_with_sigterm(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return False
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return True


async def _with_sigterm(work: Coroutine[None, None, None]) -> None:
    this_task = asyncio.current_task()
    assert this_task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)
    await work

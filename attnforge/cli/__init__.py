"""The command line: ``attnforge COMMAND``. Its commands are in ``attnforge.cli.app``."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType

INTERRUPTED = 130
"""Exit code: 128 + SIGINT, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line (this process's by default) and exits: 2 with one line on stderr for an error of our own,
    INTERRUPTED with one line after Ctrl-C.

    What is imported before this is called is all that Ctrl-C could answer with a traceback: next to nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as in a script's background job
        signal.signal(signal.SIGINT, _end_at_once)
    try:
        from attnforge.cli.app import run

        run(arguments)
    finally:
        # A command that was interrupted has it ignored: Python takes a second to shut down after torch and optuna.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    """While commands are imported. Imports swallow exceptions, KeyboardInterrupt among them, and there is nothing yet
    to put in order."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)

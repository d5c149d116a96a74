"""Worker processes: a parent's handle on one, and what a worker itself runs.

A worker answers one request at a time, stays alive between them, and is killed with everything it started when it
passes a deadline. Requests and replies travel as frames on a socket of their own, so whatever is printed does no harm.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import IO, NoReturn, TypeVar

import msgspec

from attnforge.compilation.frames import FrameError, receive_frame, send_frame
from attnforge.compilation.outcome import Failure, FailureKind
from attnforge.errors import AttnforgeError

START_DEADLINE_S = 180.0
"""To import torch and triton: 3 s when idle, far more on a machine that compiles on every core."""
READY = b"ready"
FOLDER_PREFIX = "attnforge-worker-"
"""Of the temporary folder that each worker has for itself and what it starts."""
_BYTES_QUOTED = 2000
Reply = TypeVar("Reply")


class WorkerNotStartedError(AttnforgeError):
    """This machine has no room for another worker process."""

    def __init__(self, error: OSError) -> None:
        folder = tempfile.tempdir or "the temporary folder"  # not known yet where none could be written at all
        super().__init__(
            f"no worker process can be started ({error}): make room in {folder}, or name another folder in TMPDIR;"
            " where that is not it, memory, processes (ulimit -u) or open files (ulimit -n) have run out"
        )


class Worker:
    """A child process, in a session of its own, that answers frames.

    ``command`` gets the descriptor of its socket as its last argument and calls serve(). Raises WorkerNotStartedError.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._is_ready = False
        self._killing = threading.Lock()
        try:
            self._start(command, environment)
        except OSError as error:
            raise WorkerNotStartedError(error) from error

    def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with ExitStack() as held:
            folder = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True)
            held.callback(folder.cleanup)
            self._output: IO[bytes] = held.enter_context(Path(folder.name, "output").open("ab+"))
            self._connection, theirs = socket.socketpair()
            held.enter_context(self._connection)
            with theirs:
                self._process = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=self._output,
                    start_new_session=True,
                    env={**environment, "TMPDIR": folder.name},
                )
            self._held = held.pop_all()  # what close() gives back

    @property
    def process_id(self) -> int:
        """Of the worker itself; what it started is in the group of that number."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """False once it was killed, by a deadline or by its own fault."""
        return self._process.returncode is None

    @property
    def has_ended(self) -> bool:
        """Whether its process has ended, be it that no request has shown it yet: the kernel kills for memory at any
        time. It is left unreaped, because its number names the group that kill() is to end."""
        with self._killing:
            if self._process.returncode is not None:
                return True
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    @property
    def output_size(self) -> int:
        """Bytes that it has printed so far."""
        return self._output.seek(0, os.SEEK_END)

    def ask(self, request: bytes, deadline_s: float, decoder: msgspec.json.Decoder[Reply]) -> Reply | Failure:
        """The reply to a request. When the worker gave none that can be read, it is dead, and a Failure says why.

        The deadline counts from when the worker is up.
        """
        printed = self.output_size if self._is_ready else 0
        try:
            if not self._is_ready:
                self._is_ready = receive_frame(self._connection, START_DEADLINE_S) == READY
            send_frame(self._connection, request)
            return decoder.decode(receive_frame(self._connection, deadline_s))
        except TimeoutError:
            self.kill()
            limit = f"{deadline_s:g} s" if self._is_ready else f"{START_DEADLINE_S:g} s to start"
            return Failure(FailureKind.TIMEOUT, f"passed its deadline of {limit}; its process group was killed")
        except (FrameError, OSError) as error:
            self.kill()
            return Failure(FailureKind.CRASH, f"{self._death(error)}{self.printed_since(printed)}")
        except (msgspec.DecodeError, RecursionError):  # the latter where it is nested too deep
            self.kill()  # what it says next is not to be trusted either
            return Failure(FailureKind.CRASH, "the worker answered with something that is no reply")

    def printed_since(self, position: int) -> str:
        """The end of what it has printed since ``position``, on lines of its own; empty when it printed nothing."""
        self._output.seek(max(position, self.output_size - _BYTES_QUOTED))
        text = self._output.read().decode(errors="replace").strip()
        return f"\n{text}" if text else ""

    def kill(self) -> None:
        """Kill it and all that it started; harmless when it is dead already, and from another thread."""
        with self._killing:
            if self._process.returncode is None:
                # Not reaped yet, so the group still is its own, even when the process itself has died.
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def close(self) -> None:
        """Kill it and remove what it left in its temporary folder."""
        self.kill()
        self._held.close()

    def _death(self, error: Exception) -> str:
        code = self._process.returncode
        if code < 0 and code != -signal.SIGKILL:
            return f"its process died of {signal.Signals(-code).name}"
        return f"its process ended with code {code}" if code >= 0 else f"its process was killed ({error})"


def serve(descriptor: int, answer: Callable[[bytes], bytes]) -> NoReturn:
    """What a worker runs: answer the frames that arrive on ``descriptor`` until the parent is gone."""
    os.set_inheritable(descriptor, False)  # a stuck ptxas must not hold the socket open
    connection = socket.socket(fileno=descriptor)
    requests: SimpleQueue[bytes] = SimpleQueue()
    # A thread of its own reads, so that a parent's death is noticed while a compiler runs.
    threading.Thread(target=_read_until_parent_ends, args=(connection.dup(), requests), daemon=True).start()
    send_frame(connection, READY)
    while True:
        send_frame(connection, answer(requests.get()))


def _read_until_parent_ends(connection: socket.socket, requests: SimpleQueue[bytes]) -> None:
    try:
        while True:
            requests.put(receive_frame(connection))
    except FrameError:
        # Nobody is left to answer, or to tidy up. The group is this process's own, and holds the assembler that it may
        # have started.
        folder = Path(tempfile.gettempdir())
        if folder.name.startswith(FOLDER_PREFIX):  # it is another where that one cannot be written
            shutil.rmtree(folder, ignore_errors=True)
        os.killpg(os.getpid(), signal.SIGKILL)


def python_command(module: str) -> list[str]:
    """Runs a module with this interpreter; -P keeps the current folder off the import path."""
    return [sys.executable, "-P", "-m", module]

"""Who runs a trial: a tuner that shows that it lives."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from optuna.storages import BaseStorage

from attnforge.tuner.storage import HEARTBEAT_S, STORAGE_ERRORS


def this_process() -> str:
    """Names this process for good, ``MACHINE/NUMBER.START``: the boot and the PID namespace make the machine, the time
    of its start tells a process from a later one of the same number."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{boot}-{namespace}/{os.getpid()}.{_start_of(os.getpid())}"


def has_ended(process: str) -> bool:
    """Whether a process that this_process() named is known to have ended: only those of this machine can be."""
    machine, _, name = process.partition("/")
    if machine != this_process().partition("/")[0]:
        return False
    number, _, start = name.partition(".")
    return number.isdigit() and _start_of(int(number)) != start


def _start_of(number: int) -> str | None:
    """When a process started, in ticks since boot; None when there is none, or only its zombie is left."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


class Heart:
    """Tells the storage again and again, from a thread of its own, that trials still run."""

    def __init__(self, storage: BaseStorage, interval_s: float = HEARTBEAT_S) -> None:
        self._storage = storage
        self._interval_s = interval_s
        self._new: set[int] = set()
        self._trials: set[int] = set()
        self._lock = threading.Lock()
        self._wakes = threading.Event()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def add(self, trial_id: int) -> None:
        """Beats for a trial from now on, at once for the first time."""
        with self._lock:
            self._new.add(trial_id)
            self._trials.add(trial_id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        self._wakes.set()

    def remove(self, trial_id: int) -> None:
        """No longer: the trial is finished."""
        with self._lock:
            self._new.discard(trial_id)
            self._trials.discard(trial_id)

    def close(self) -> None:
        """Stop, and wait for the beat under way."""
        self._is_closed = True
        self._wakes.set()
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        next_round = time.monotonic() + self._interval_s
        while not self._is_closed:
            self._wakes.wait(max(0.0, next_round - time.monotonic()))
            self._wakes.clear()
            is_round = time.monotonic() >= next_round
            if is_round:
                next_round += self._interval_s
            with self._lock:
                due = tuple(self._trials if is_round else self._new)
                self._new.clear()
            for trial_id in due:
                try:
                    self._storage.record_heartbeat(trial_id)
                except (KeyError, *STORAGE_ERRORS):
                    continue  # out of reach for now, or gone; whoever stores a result next is told

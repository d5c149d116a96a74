"""Shows on a real GPU that a tune survives kill -9: kills one midway, resumes it, and counts the trials.

    python benchmarks/kill_and_resume.py --after 60 -- --head-dim 64

What follows ``--`` goes to `attnforge tune`. Exits with 1 when a finished trial was lost or repeated, or when a process
of the killed tune is still there 10 s later. Uses ATTNFORGE_CACHE_DIR, which should be empty.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import optuna

from attnforge.settings import Settings


def finished_trials() -> Counter[tuple[str, str]]:
    """How often each config of each study has been finished; keys are (study, config)."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: Counter[tuple[str, str]] = Counter()
    for database in Path(Settings.from_environment().studies_dir).glob("*.sqlite3"):
        storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
        for summary in optuna.get_all_study_summaries(storage=storage):
            study = optuna.load_study(study_name=summary.study_name, storage=storage)
            for trial in study.get_trials(deepcopy=False):
                if "outcome" in trial.user_attrs:
                    found[summary.study_name, repr(sorted(trial.params.items()))] += 1
    return found


def processes_with(mark: str) -> list[int]:
    """Processes that inherited ``mark`` in their environment, zombies left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile, or is somebody else's
            continue
    return found


def kill_midway(command: list[str], after_s: float) -> list[int]:
    """Start a tune, send it SIGKILL after a while, and return those of its processes that outlive it by 10 s."""
    mark = f"ATTNFORGE_KILLED_TUNE={uuid.uuid4()}"
    tune = subprocess.Popen(command, env=os.environ | dict([mark.split("=")]))
    time.sleep(after_s)
    os.kill(tune.pid, signal.SIGKILL)
    tune.wait()
    for _ in range(20):
        if not processes_with(mark):
            break
        time.sleep(0.5)
    return processes_with(mark)


def main() -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--after", type=float, default=60.0, help="seconds until the kill")
    parser.add_argument("arguments", nargs="*", help="of attnforge tune")
    options = parser.parse_args()
    command = ["attnforge", "tune", *options.arguments]
    started = time.monotonic()
    orphans = kill_midway(command, options.after)
    before = finished_trials()
    resumed = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    after = finished_trials()
    lost = [trial for trial in before if trial not in after]
    repeated = [trial for trial, times in after.items() if times > 1]
    print(
        f"killed after {options.after:.0f} s with {len(before)} finished trials; resumed for "
        f"{time.monotonic() - resumed:.0f} s (status {status}), {len(after)} finished in all; {len(lost)} lost, "
        f"{len(repeated)} repeated, {len(orphans)} orphans; {time.monotonic() - started:.0f} s in all"
    )
    return int(bool(lost or repeated or orphans or status or not before))


if __name__ == "__main__":
    sys.exit(main())

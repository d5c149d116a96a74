"""Shows that a tune's throughput grows with its GPUs, on fake ones: workers that sleep for as long as a trial takes.

    python benchmarks/fake_devices.py

Tunes the same specs with one fake device and with several, behind the real session, studies and workers, and prints the
trials a second of each. Only the compilers, the GPUs and their times are invented. Exits with 1 when the gain is less
than --least. From the checkout: it uses the tests' fakes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by path

from tests.tuner.fake_device import Script
from tests.tuner.fake_tune import TASKS, session_of


def trials_per_second(devices: int, seconds: float, trials: int) -> float:
    """Of one tune, from its first measurement to its last one; comparisons at the ends of specs included."""
    with tempfile.TemporaryDirectory() as folder:
        script = Script(folder, devices=devices, seconds=seconds)
        if not session_of(script, TASKS, trials=trials).run():
            sys.exit("interrupted")
        moments = [float(line.split()[0]) for line in script.moments.read_text().splitlines()]
        by_device = Counter(line.split()[1] for line in script.moments.read_text().splitlines())
    shares = ", ".join(f"{count}" for count in by_device.values())
    rate = (len(moments) - 1) / (max(moments) - min(moments))
    print(f"{devices} devices: {len(moments)} trials ({shares}), {rate:.2f} a second", flush=True)
    return rate


def main() -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a trial takes on a fake device")
    parser.add_argument("--trials", type=int, default=24, help="for each of 4 specs on 2 problems")
    parser.add_argument("--least", type=float, default=3.5, help="times one device's throughput")
    options = parser.parse_args()
    started = time.monotonic()
    one, several = (trials_per_second(n, options.seconds, options.trials) for n in (1, options.devices))
    print(f"{several / one:.2f} x one device's throughput; {time.monotonic() - started:.0f} s in all")
    return int(several / one < options.least)


if __name__ == "__main__":
    sys.exit(main())

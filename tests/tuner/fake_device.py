"""A device behind the real worker protocol whose measurements come from a formula, and which misbehaves on demand."""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import log2
from pathlib import Path

import msgspec
from msgspec import structs

from attnforge.cache.schema import Conditions, Versions
from attnforge.codegen import DType, Schedule, Variant, fields_of
from attnforge.compilation import Failure, FailureKind
from attnforge.problem import Problem
from attnforge.target import Target
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.messages import Accurate, Comparison, Identity, NoDevice

TARGET = Target(arch="sm_90", name="Fake", sm_count=132, shared_memory=232448)
VERSIONS = Versions.installed()
IDENTITY = Identity(TARGET, triton=VERSIONS.triton, torch=VERSIONS.torch, uuid="GPU-all")
BEST = {"block_m": 64, "block_n": 32, "num_warps": 4, "num_stages": 2}
"""What every portable kernel is fastest with; no default config."""
HOPPER_BEST = {"stages": 2, "anchor": True}
"""What hopper's is, at twice that speed; no default config either."""


@dataclass
class Script:
    """How the fakes are to behave; told to their processes in a file."""

    folder: str
    faults: dict[str, str] = field(default_factory=dict)
    """By the name of a config, or "*" for all: one of the faults below, or of fake_compiler's."""
    has_gpu: bool = True
    devices: int = 1
    """That are visible, alike but for the odd ones."""
    odd_devices: dict[str, str] = field(default_factory=dict)
    """By what CUDA_VISIBLE_DEVICES says: "broken", "another" GPU, or one that has "moved" there."""
    lost_after: dict[str, int] = field(default_factory=dict)
    """By the same: measurements after which that GPU is lost to every process."""
    opening_s: float = 0.0
    """That a process takes to open its device."""
    seconds: float = 0.0
    """That a measurement takes."""
    conditions: dict[str, object] | None = None
    """What the device is like while it compares, as JSON has it."""

    @property
    def log(self) -> Path:
        """A line for each request that a fake device saw."""
        return Path(self.folder, "requests.log")

    @property
    def processes(self) -> Path:
        """The same lines, each with the number of the fake device's process before it."""
        return Path(self.folder, "processes.log")

    @property
    def moments(self) -> Path:
        """When each measurement ended, in seconds, and on which device."""
        return Path(self.folder, "moments.log")

    @property
    def moment(self) -> Path:
        """A file that is there while the device needs a moment."""
        return Path(self.folder, "moment")

    def measurements(self, seen: str) -> int:
        """How many a device has finished, by what CUDA_VISIBLE_DEVICES says."""
        lines = self.moments.read_text().splitlines() if self.moments.exists() else []
        return sum(line.split()[1] == seen for line in lines)

    def write(self) -> Path:
        path = Path(self.folder, "script.json")
        whole = path.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(asdict(self)))
        return whole.replace(path)

    @staticmethod
    def read(path: str) -> "Script":
        return Script(**json.loads(Path(path).read_text()))

    def fault(self, variant: Variant) -> str | None:
        return self.faults.get(variant.config.name, self.faults.get("*"))

    def note(self, *words: object) -> None:
        for path, line in ((self.log, words), (self.processes, (os.getpid(), *words))):
            with path.open("a") as log:
                log.write(" ".join(map(str, line)) + "\n")


def kernel_ms(variant: Variant, problem: Problem) -> dict[str, float]:
    """Each kernel's milliseconds: twice as long for each step of a power of two away from BEST.

    Hopper's: half as long, and twice that for each field that is not as in HOPPER_BEST; its backward has none of these.
    """
    fields = fields_of(variant.config)
    if variant.schedule is Schedule.HOPPER:
        steps = sum(fields[name] != best for name, best in HOPPER_BEST.items() if name in fields)
        return dict.fromkeys(variant.definition.kernels, problem.seqlen_q / 1024 * 2.0 ** (steps - 1))
    times = {}
    for kernel, names in variant.definition.kernels.items():
        prefix = "" if kernel == "forward" else f"{kernel}_"
        steps = sum(
            abs(log2(int(fields[name])) - log2(BEST[name.removeprefix(prefix)]))
            for name in names
            if name.removeprefix(prefix) in BEST
        )
        times[kernel] = problem.seqlen_q / 1024 * 2.0**steps
    return times if "forward" in times else {"delta": 0.125} | times


class FakeDevice:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        self._is_open = False

    def identify(self) -> Identity | NoDevice:
        self.script.note("identify", self.seen)
        identity = structs.replace(IDENTITY, uuid=f"GPU-{self.seen}", devices=self.script.devices)
        match self.script.odd_devices.get(self.seen):
            case "broken":
                os._exit(3)
            case "another":
                identity = structs.replace(identity, target=replace(TARGET, sm_count=1))
            case "moved":
                identity = structs.replace(identity, uuid="GPU-moved")
        if self.script.moment.exists():
            self.script.moment.unlink()
            raise RuntimeError("CUDA error: busy or unavailable")
        self._open()
        return identity if self.script.has_gpu else NoDevice("none")

    def _open(self) -> None:
        if self._is_lost:
            raise RuntimeError("CUDA error: the GPU is lost")
        if not self._is_open:
            time.sleep(self.script.opening_s)
            self._is_open = True

    @property
    def _is_lost(self) -> bool:
        lost_after = self.script.lost_after.get(self.seen)
        return lost_after is not None and self.script.measurements(self.seen) >= lost_after

    def measure(self, variant: Variant, problem: Problem, best_ms: dict[str, float]) -> Measurement | Failure:
        self.script.note("measure", variant.name, problem.seqlen_q)
        self._open()
        time.sleep(self.script.seconds)
        match self.script.fault(variant):
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
            case "stops":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hangs":
                time.sleep(600)
            case "prints":
                os.write(1, b"\x00\x00\x00\x05noise" * 5000)
            case "garbage":
                self._write_to_the_socket(b"\xff" * 64)
            case "wrong":
                return Failure(FailureKind.ACCURACY, "out is wrong")
            case "no_reply":
                self._write_to_the_socket(b"\x00\x00\x00\x04oops")
            case "raises":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            case "needs a moment":
                self.script.moment.touch()
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        with self.script.moments.open("a") as log:
            log.write(f"{time.monotonic()} {self.seen}\n")
        return Measurement(kernel_ms(variant, problem), runs=7)

    def compare(
        self, variants: Sequence[Variant], problem: Problem, seed: int, own_processes: Sequence[int]
    ) -> Comparison | Failure:
        self._open()
        self.script.note("own", *own_processes)
        self.script.note("compare", seed, *(variant.config.name for variant in variants))
        if any(map(self._dies_comparing, variants)):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.script.seconds)
        rounds = [[sum(kernel_ms(v, problem).values()) * (1 + 0.001 * (i % 3)) for i in range(16)] for v in variants]
        self.script.note("compared")
        return Comparison(tuple(map(tuple, rounds)), msgspec.convert(self.script.conditions, Conditions | None))

    def _dies_comparing(self, variant: Variant) -> bool:
        if self.script.fault(variant) == "dies comparing once":
            return sum(line.startswith("compare ") for line in self.script.log.read_text().splitlines()) == 1
        return self.script.fault(variant) == "dies comparing"

    def check(self, variant: Variant, dtype: DType) -> Accurate | Failure:
        self.script.note("check", variant.name)
        if self.script.fault(variant) == "wrong at the tail":
            return Failure(FailureKind.ACCURACY, "the tail is wrong")
        return Accurate()

    def kind_of(self, error: Exception) -> FailureKind:
        return FailureKind.LAUNCH

    def is_usable(self) -> bool:
        return not self._is_lost and not {"raises", "needs a moment"} & set(self.script.faults.values())

    def _write_to_the_socket(self, words: bytes) -> None:
        import sys

        os.write(int(sys.argv[-1]), words)
        time.sleep(600)

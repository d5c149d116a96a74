"""A compiler process that compiles nothing; run by path, with a script's path and the socket's descriptor."""

import sys
import time
from pathlib import Path

import msgspec

from attnforge.compilation import CompileReport, Failure, FailureKind, KernelReport, serve
from attnforge.compilation.job import CompileJob

sys.path.insert(0, str(Path(__file__).parents[2]))  # run by path

from tests.tuner.fake_device import Script

if __name__ == "__main__":
    script = Script.read(sys.argv[1])

    def answer(request: bytes) -> bytes:
        variant = msgspec.json.decode(request, type=CompileJob).variant.variant
        spilled = 4096 if script.fault(variant) == "spills" else 0
        kernels = (KernelReport(f"{kernel}_kernel", 1024, 64, spilled, ()) for kernel in variant.definition.kernels)
        outcome: CompileReport | Failure = CompileReport(tuple(kernels), 0.0)
        match script.fault(variant):
            case "never compiles":
                time.sleep(600)
            case "does not fit":
                outcome = Failure(FailureKind.RESOURCES, "needs too much shared memory")
        return msgspec.json.encode(outcome)

    serve(int(sys.argv[2]), answer)

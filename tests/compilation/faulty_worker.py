"""A pool's worker that misbehaves as its job's problem says; run by path, with the socket's descriptor."""

import os
import signal
import subprocess
import sys
import time

import msgspec

from attnforge.compilation import CompileReport, Failure, FailureKind, KernelReport
from attnforge.compilation.job import CompileJob
from attnforge.compilation.worker import serve

GOOD, HANGS, DIES, PRINTS, REFUSES, EXITS, NO_JSON, NO_REPORT, TOO_DEEP = range(1, 10)
REPORT = CompileReport((KernelReport("forward_kernel", 1024, 64, 0, ()),), seconds=0.5)


def answer(request: bytes) -> bytes:
    problem = msgspec.json.decode(request, type=CompileJob).problem
    outcome: CompileReport | Failure = REPORT
    match problem.batch:
        case n if n == HANGS:
            # As a stuck ptxas would be: a process of the compiler's own, that holds every descriptor it inherits.
            subprocess.Popen(["sleep", "600"], close_fds=False)
            time.sleep(600)
        case n if n == DIES:
            print("about to die", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        case n if n == PRINTS:
            os.write(1, b"\x00\x00\x00\x05noise" * 1000)
        case n if n == REFUSES:
            print("error: the compiler's own words", file=sys.stderr, flush=True)
            outcome = Failure(FailureKind.COMPILE, "PassManager::run failed")
        case n if n == EXITS:
            sys.exit(3)
        case n if n == NO_JSON:
            return b"oops"
        case n if n == NO_REPORT:
            return b'{"type": "report", "kernels": 7, "seconds": "long"}'
        case n if n == TOO_DEEP:
            return b'{"type": "report", "surprise": ' + b"[" * 10**6
    return msgspec.json.encode(outcome)


if __name__ == "__main__":
    serve(int(sys.argv[1]), answer)

"""The program of a CompilePool's workers: ``python -m attnforge.compilation.child DESCRIPTOR``."""

from __future__ import annotations

import sys

import msgspec

from attnforge.compilation.compiler import compile_variant
from attnforge.compilation.job import CompileJob
from attnforge.compilation.worker import serve


def answer(request: bytes) -> bytes:
    """Compile the job in a frame; the reply is an encoded CompileReport or Failure."""
    job = msgspec.json.decode(request, type=CompileJob)
    return msgspec.json.encode(compile_variant(job.variant.variant, job.problem, job.target))


if __name__ == "__main__":
    serve(int(sys.argv[1]), answer)

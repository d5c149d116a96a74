"""The program of a measuring worker: ``python -m attnforge.tuner.worker gpu|interpreter DESCRIPTOR``.

It runs what the tuner sends over the socket DESCRIPTOR, one request at a time, and lives until the tuner kills it.
"""

from __future__ import annotations

import sys
from functools import partial

from attnforge.compilation import serve
from attnforge.tuner.device import Device, answer


def device_of(kind: str) -> Device:
    """The device that a worker was started for; only then is anything of torch imported."""
    if kind == "interpreter":
        from attnforge.tuner.interpreter_device import InterpreterDevice

        return InterpreterDevice()
    from attnforge.tuner.gpu_device import GpuDevice

    return GpuDevice()


if __name__ == "__main__":
    serve(int(sys.argv[2]), partial(answer, device_of(sys.argv[1])))

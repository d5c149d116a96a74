"""A measuring worker on the real GPU whose kernels do harm on demand; run by path, with the socket's descriptor."""

import sys
from functools import partial

import torch
import triton
import triton.language as tl

from attnforge.codegen import Variant
from attnforge.compilation import Failure, serve
from attnforge.problem import Problem
from attnforge.tuner.device import answer
from attnforge.tuner.gpu_device import GpuDevice
from attnforge.tuner.measurement import Measurement

ILLEGAL_ACCESS, SPIN = 1024, 2048
"""Sequence lengths that ask for a fault."""


@triton.jit
def writes_far_outside_kernel(pointer):
    tl.store(pointer + tl.program_id(0).to(tl.int64) * (1 << 38), 1.0)


@triton.jit
def spins_kernel(pointer):
    while tl.load(pointer, volatile=True) == 0.0:
        pass


class FaultyGpuDevice(GpuDevice):
    def measure(self, variant: Variant, problem: Problem, best_ms: dict[str, float]) -> Measurement | Failure:
        pointer = torch.zeros(1, device="cuda")
        if problem.seqlen_q == ILLEGAL_ACCESS:
            writes_far_outside_kernel[(64,)](pointer)
            torch.cuda.synchronize()
        if problem.seqlen_q == SPIN:
            spins_kernel[(1,)](pointer)
            torch.cuda.synchronize()
        return super().measure(variant, problem, best_ms)


if __name__ == "__main__":
    serve(int(sys.argv[1]), partial(answer, FaultyGpuDevice()))

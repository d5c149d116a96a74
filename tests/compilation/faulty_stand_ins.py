"""Modules that the compile gate must catch: each has a rendered module's plan()."""

from types import SimpleNamespace

import triton
import triton.language as tl

from tests.compilation import stand_in


@triton.jit
def undefined_name_kernel(lse_ptr):
    tl.store(lse_ptr, no_such_name)  # noqa: F821


@triton.jit
def many_live_values_kernel(q_ptr, lse_ptr):
    """One warp holds a tile of 64 x 256 through a barrier of a transposition: 512 values a thread."""
    rows, columns = tl.arange(0, 64), tl.arange(0, 256)
    offsets = rows[:, None] * 256 + columns[None, :]
    tile = tl.load(q_ptr + offsets).to(tl.float32)
    largest = tl.max(tile, 1)
    scaled = tl.exp(tile - largest[:, None])
    smallest = tl.min(scaled, 0)
    tl.store(lse_ptr + offsets, scaled * smallest[None, :] + tile)


def _plan_of(kernel, arguments):
    def plan(q, k, v, out, lse, softmax_scale):
        options = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}
        return [(kernel, (1, 1, 1), arguments(q, lse), (), options)]

    return plan


does_not_compile = SimpleNamespace(plan=_plan_of(undefined_name_kernel, lambda q, lse: (lse,)))
spills = SimpleNamespace(plan=_plan_of(many_live_values_kernel, lambda q, lse: (q, lse)))
wants_much_shared_memory = SimpleNamespace(plan=lambda *arguments: stand_in.plan(*arguments, num_stages=6))

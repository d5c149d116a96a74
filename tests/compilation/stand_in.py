"""A small kernel with a rendered module's plan(), to test the compile gate on."""

import triton
import triton.language as tl

BLOCK_M = tl.constexpr(64)
BLOCK_N = tl.constexpr(64)


@triton.jit(do_not_specialize=["seqlen_k"])
def scores_kernel(q_ptr, k_ptr, out_ptr, stride_qm, stride_kn, seqlen_k, scale, D: tl.constexpr, MASK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * stride_qm + columns[None, :])
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in tl.range(0, seqlen_k, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[None, :] * stride_kn + columns[:, None])
        scores = tl.dot(q, k) * scale
        if MASK:
            scores = tl.where(keys[None, :] < seqlen_k, scores, 0.0)
        total += tl.sum(scores, 1)
    tl.store(out_ptr + rows, total)


def plan(q, k, v, out, lse, softmax_scale, num_stages=2):
    grid = (triton.cdiv(q.shape[2], BLOCK_M.value), 1, 1)
    scalars = (q.stride(2), k.stride(2), k.shape[2], softmax_scale, q.shape[3], k.shape[2] % BLOCK_N.value != 0)
    options = {"num_warps": 4, "num_stages": num_stages, "enable_fp_fusion": True}
    return [(scores_kernel, grid, (q, k, lse), scalars, options)]

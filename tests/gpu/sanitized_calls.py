"""Small calls of the hopper kernels, with tails and grouped heads, to be run under compute-sanitizer:

compute-sanitizer --tool memcheck --kernel-regex kns=_kernel python -m tests.gpu.sanitized_calls
"""

from itertools import product

import torch

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, schedule_of
from attnforge.kernels import load
from attnforge.target import Target

SM_90 = Target.for_arch("sm_90").limits


def a_default(pass_: Pass, head_dim: int, causal: bool) -> Variant:
    """The default kernel of a spec in bf16."""
    spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
    return Variant(spec, Schedule.HOPPER, schedule_of(Schedule.HOPPER, pass_).default(spec, DType.BF16, SM_90))


def main() -> None:
    """Launch each default on so many tiles that persistent programs walk over several."""
    for head_dim, causal in product((64, 80, 256), (False, True)):
        q = torch.randn(4, 40, 333, head_dim, device="cuda", dtype=torch.bfloat16)
        k, v = torch.randn(2, 4, 8, 400, head_dim, device="cuda", dtype=torch.bfloat16)
        out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda")
        load(a_default(Pass.FORWARD, head_dim, causal)).launch(q, k, v, out, lse, 0.125)
        plain = a_default(Pass.BACKWARD, head_dim, causal)
        for backward in (plain, plain.deterministic):
            gradients = [torch.empty_like(tensor) for tensor in (q, k, v)]
            load(backward).launch(torch.ones_like(out), q, k, v, out, lse, *gradients, 0.125)
            torch.cuda.synchronize()
            assert all(tensor.isfinite().all() for tensor in (out, *gradients))
        print(plain.spec.name, "and its forward ran")


if __name__ == "__main__":
    main()

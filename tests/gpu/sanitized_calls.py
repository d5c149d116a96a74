"""Small calls of the hopper kernels, with tails and grouped heads, to be run under compute-sanitizer:

compute-sanitizer --tool memcheck --kernel-name regex:'forward_kernel|backward_kernel' python -m tests.gpu.sanitized_calls
"""

from itertools import product

import torch

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, schedule_of
from attnforge.kernels import load
from attnforge.target import Target


def main() -> None:
    """Launch each default twice over, so that persistent programs walk over several tiles."""
    limits = Target.for_arch("sm_90").limits
    for head_dim, causal in product((64, 80, 256), (False, True)):
        spec = AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
        config = schedule_of(Schedule.HOPPER, Pass.FORWARD).default(spec, DType.BF16, limits)
        q = torch.randn(4, 40, 333, head_dim, device="cuda", dtype=torch.bfloat16)
        k, v = torch.randn(2, 4, 8, 400, head_dim, device="cuda", dtype=torch.bfloat16)
        out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda")
        load(Variant(spec, Schedule.HOPPER, config)).launch(q, k, v, out, lse, 0.125)
        torch.cuda.synchronize()
        assert out.isfinite().all()
        print(spec.name, "ran")


if __name__ == "__main__":
    main()

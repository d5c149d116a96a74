"""Hypothesis strategies for everything that codegen accepts."""

from hypothesis import strategies as st

from attnforge.codegen import (
    SUPPORTED_HEAD_DIMS,
    AttentionSpec,
    DType,
    HeadDimSplit,
    Limits,
    Pass,
    PortableBackwardConfig,
    PortableForwardConfig,
    Schedule,
    Variant,
)

LIMITS = (
    Limits("sm_80", 166912),
    Limits("sm_86", 101376),
    Limits("sm_90", 232448),
    Limits("sm_100", 232448),
    Limits("sm_120", 101376),
    Limits("gfx942", 65536),
    Limits("gfx950", 163840),
)

head_dims = st.sampled_from(SUPPORTED_HEAD_DIMS)
limits = st.sampled_from(LIMITS)
dtypes = st.sampled_from(DType)
specs = st.builds(
    AttentionSpec, pass_=st.sampled_from(Pass), head_dim=head_dims, head_dim_v=head_dims, causal=st.booleans()
)


def _tile(prefix: str) -> dict[str, st.SearchStrategy[int]]:
    blocks = st.sampled_from((16, 32, 64, 128, 256))
    return {
        f"{prefix}block_m": blocks,
        f"{prefix}block_n": blocks,
        f"{prefix}num_warps": st.sampled_from((1, 2, 4, 8, 16)),
        f"{prefix}num_stages": st.integers(1, 6),
    }


splits = st.sampled_from(HeadDimSplit)
forward_configs = st.builds(PortableForwardConfig, **_tile(""), head_dim_split=splits)
backward_configs = st.builds(
    PortableBackwardConfig,
    **_tile("dkdv_"),
    dkdv_pin_accumulators=st.booleans(),
    **_tile("dq_"),
    head_dim_split=splits,
)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    """Any variant of the portable schedule, whether a target can run it or not."""
    spec = draw(specs)
    configs = forward_configs if spec.pass_ is Pass.FORWARD else backward_configs
    return Variant(spec, Schedule.PORTABLE, draw(configs))

"""The grid of numerics.md for a GPU: 28 rows, each of what is compiled in, and the seqlens that each row runs.

Pairwise, not a full product: every value meets the extremes of the others, and about 150 kernels are compiled.
"""

from __future__ import annotations

from attnforge.codegen import AttentionSpec, DType, HeadDimSplit
from attnforge.tuner.accuracy_inputs import Case, Family, Layout

CHUNKS, PADDED = HeadDimSplit
FP16, BF16, FP32 = DType
SEQLENS = (1, 2, 63, 64, 65, 127, 129, 1000, 1025)
GROUPS = ((2, 2), (4, 1), (8, 1), (8, 2), (16, 2))
"""(heads, kv_heads): ratios of 1, 4, 8, with one kv head and with two."""
ROWS = [
    # head_dim, head_dim_v, split, causal, dtype
    (16, 16, CHUNKS, True, FP16),
    (32, 32, CHUNKS, False, BF16),
    (40, 40, CHUNKS, True, BF16),
    (40, 24, PADDED, False, FP16),
    (64, 64, CHUNKS, True, BF16),
    (64, 64, CHUNKS, False, FP16),
    (64, 64, CHUNKS, True, FP32),
    (72, 72, PADDED, True, FP16),
    (72, 72, CHUNKS, False, BF16),
    (80, 80, CHUNKS, True, FP16),
    (80, 80, PADDED, False, BF16),
    (96, 96, CHUNKS, True, BF16),
    (96, 96, PADDED, False, FP32),
    (112, 112, CHUNKS, False, FP16),
    (112, 112, PADDED, True, BF16),
    (128, 128, CHUNKS, False, BF16),
    (128, 128, CHUNKS, True, FP16),
    (128, 128, CHUNKS, False, FP32),
    (160, 160, CHUNKS, True, BF16),
    (160, 160, PADDED, False, FP16),
    (192, 128, CHUNKS, True, BF16),
    (192, 192, PADDED, False, FP16),
    (224, 224, CHUNKS, False, BF16),
    (224, 224, PADDED, True, FP16),
    (256, 256, CHUNKS, True, BF16),
    (256, 256, CHUNKS, False, FP16),
    (16, 256, CHUNKS, False, BF16),
    (256, 64, CHUNKS, True, FP32),
]


def name_of(index: int) -> str:
    head_dim, head_dim_v, split, causal, dtype = ROWS[index]
    return f"{head_dim}x{head_dim_v} {split} {'causal' if causal else 'full'} {dtype}"


def cases_of(index: int, spec: AttentionSpec, dtype: DType) -> list[Case]:
    """Each seqlen as seqlen_q and as seqlen_k, paired anew in each row, so that over the rows each meets each.

    Only every third row has lengths that blocks divide: they compile kernels of their own.
    """
    seqlens = [n for n in SEQLENS if n != 64 or index % 3 == 0]
    pairs = [(n, seqlens[(place + index) % len(seqlens)]) for place, n in enumerate(seqlens)]
    if index % 3 == 0:
        pairs.append((256, 512))
    heads, kv_heads = GROUPS[index % len(GROUPS)]
    layout = list(Layout)[index % len(Layout)]
    return [
        Case(
            spec=spec, dtype=dtype, seqlen_q=seqlen_q, seqlen_k=seqlen_k, heads=heads, kv_heads=kv_heads,
            layout=layout, families=Family.of(spec), scale_factor=0.75 if index % 2 else 1.0,
        )
        for seqlen_q, seqlen_k in pairs
    ]  # fmt: skip

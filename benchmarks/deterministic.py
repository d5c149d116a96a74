"""What determinism costs: the backward of ``attention(..., deterministic=True)`` beside the plain one, on this GPU.

    python benchmarks/deterministic.py --out benchmarks/results/deterministic.json

bf16, 16384 tokens, 2048 hidden; head dims 64, 128 and 256, sequence lengths 1024, 4096 and 16384, causal and not.
Prints the share of the plain backward's speed that is left, and whether gradients repeat bitwise; exits 1 where they do
not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import geometric_mean, median

import torch
from triton.testing import do_bench

from attnforge import attention

TOKENS, HIDDEN = 16384, 2048
HEAD_DIMS, SEQLENS = (64, 128, 256), (1024, 4096, 16384)
ROUNDS = 3
"""Of timing either in turn, of which the median counts."""
REPEATS = 100
"""Backward passes that must give the same bits."""

Backward = Callable[[], tuple[torch.Tensor, ...]]


def backward_of(inputs: list[torch.Tensor], dout: torch.Tensor, causal: bool, deterministic: bool) -> Backward:
    """What computes the gradients of (batch, heads, seqlen, head dim) inputs anew at each call."""
    out = attention(*inputs, causal=causal, deterministic=deterministic)
    return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)


def measured(head_dim: int, seqlen: int, causal: bool) -> dict[str, int | float | bool]:
    """One cell: both times in milliseconds, their ratio, and whether the deterministic gradients repeat."""
    shape = TOKENS // seqlen, HIDDEN // head_dim, seqlen, head_dim
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    dout = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    runs = [backward_of(inputs, dout, causal, deterministic) for deterministic in (False, True)]
    first = runs[1]()
    repeats = all(all(map(torch.equal, first, runs[1]())) for _ in range(REPEATS))
    rounds = [[do_bench(run, warmup=5, rep=20, return_mode="median") for run in runs] for _ in range(ROUNDS)]
    plain_ms, deterministic_ms = (median(times) for times in zip(*rounds, strict=True))
    return {
        "head_dim": head_dim, "seqlen": seqlen, "causal": causal, "plain_ms": plain_ms,
        "deterministic_ms": deterministic_ms, "ratio": plain_ms / deterministic_ms, "repeats": repeats,
    }  # fmt: skip


def main() -> int:
    """Measure the grid, print it, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("deterministic.json"))
    out: Path = parser.parse_args().out
    torch.manual_seed(0)
    cells = []
    for head_dim, causal, seqlen in product(HEAD_DIMS, (False, True), SEQLENS):
        cell = measured(head_dim, seqlen, causal)
        cells.append(cell)
        mask = "causal" if causal else "full"
        print(f"{head_dim:4} {mask:6} {seqlen:6}  {cell['ratio']:.2f} x plain  repeats: {cell['repeats']}", flush=True)
    mean = geometric_mean(float(cell["ratio"]) for cell in cells)
    print(f"geometric mean {mean:.3f}; bar 0.85")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"gpu": torch.cuda.get_device_name(), "mean": mean, "cells": cells}, indent=1) + "\n")
    return 0 if all(cell["repeats"] for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A run's results without a GPU: the shape of the real thing, invented numbers."""

from __future__ import annotations

from collections.abc import Callable

from attnforge.bench.case import grid
from attnforge.bench.results import (
    OURS,
    Cell,
    DecisionRecord,
    Environment,
    Failure,
    GpuState,
    HostCost,
    Measurement,
    Outcome,
    Results,
)
from attnforge.codegen import Pass

LABELS = {
    OURS: "attnforge",
    "flash": "SDPA flash (FA2)",
    "cudnn": "SDPA cuDNN",
    "flex": "FlexAttention",
    "fa4": "FlashAttention-4",
}
SPEEDS = {OURS: 450.0, "flash": 300.0, "cudnn": 500.0, "flex": 400.0, "fa4": 600.0}


def _measurement(operations: float, tflops: float) -> Measurement:
    median_ms = operations / tflops / 1e9
    return Measurement(
        median_ms=median_ms, low_ms=0.99 * median_ms, high_ms=1.02 * median_ms, rounds=20, tflops=tflops, setup_s=1.5
    )


def make_results(
    speeds: Callable[[Pass, str, str], float | None] = lambda pass_, cell, name: SPEEDS[name],
) -> Results:
    """Results of the default grid; ``speeds`` gives TFLOP/s by pass, cell's name and implementation, None fails."""
    cells = []
    for pass_ in Pass:
        for case in grid():
            outcomes: dict[str, Outcome] = {}
            for name in LABELS:
                tflops = speeds(pass_, case.name, name)
                outcomes[name] = (
                    Failure(kind="out of memory", reason="CUDA out of memory")
                    if tflops is None
                    else _measurement(case.operations(pass_), tflops)
                )
            cell = Cell(
                pass_=pass_,
                batch=case.batch,
                heads=case.heads,
                kv_heads=case.kv_heads,
                seqlen=case.seqlen,
                head_dim=case.head_dim,
                causal=case.causal,
                dtype=case.dtype,
                decision=DecisionRecord(kind="exact", reason="tuned here", variant="portable/x", cache="/c.yaml"),
                outcomes=outcomes,
            )
            cells.append(cell)
    state = GpuState(sm_mhz=1980, memory_mhz=3201, temperature_c=41, power_w=310.5, processes=1)
    return Results(
        created="2026-11-23T12:00:00+00:00",
        environment=Environment(
            gpu="NVIDIA H200",
            arch="sm_90",
            driver="580.1",
            python="3.12.3",
            versions={"torch": "2.11.0"},
            before=state,
            after=None,
        ),
        implementations=LABELS,
        cells=cells,
        host_cost=HostCost(
            shape=(1, 1, 16, 64),
            dispatched_us=12.5,
            raw_launch_us=2.5,
            sdpa_us=16.0,
            dispatched_grad_us=22.0,
            sdpa_grad_us=21.0,
        ),
        seconds=140.0,
    )

"""One run of the bench on this machine's GPU, from the guard to the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from time import perf_counter

import torch
from triton import knobs

from attnforge.bench.case import Case
from attnforge.bench.environment import environment, gpu_state
from attnforge.bench.implementations import Implementation
from attnforge.bench.ours import Decisions, measure_host_cost
from attnforge.bench.results import Cell, Failure, HostCost, Results
from attnforge.bench.run import failure_of, run_case
from attnforge.bench.timing import CudaTimer
from attnforge.codegen import Pass
from attnforge.errors import AttnforgeError
from attnforge.target import Target


class NeedsGpuError(AttnforgeError):
    """There is nothing here whose speed could be measured."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"attnforge bench measures kernels on a GPU: {reason}")


def check_gpu() -> torch.device:
    """The GPU to measure on, torch's current one. Raises NeedsGpuError."""
    if not torch.cuda.is_available():
        raise NeedsGpuError("torch sees none on this machine (torch.cuda.is_available() is False)")
    if knobs.runtime.interpret:
        raise NeedsGpuError("TRITON_INTERPRET is set, so kernels would be interpreted; unset it")
    return torch.device("cuda", torch.cuda.current_device())


def run_bench(
    cases: Sequence[Case],
    passes: Sequence[Pass],
    implementations: Sequence[Implementation],
    on_cell: Callable[[Cell], None],
) -> Results:
    """Compile ahead, measure every case, then the host cost.

    Args:
        cases: may be empty: the host cost alone.
        passes: forward, backward or both.
        implementations: ours first.
        on_cell: called with each cell when it is done.

    Raises NeedsGpuError, and SpecError for a head dim that no template can render.
    """
    started, created = perf_counter(), datetime.now(UTC)
    device = check_gpu()
    decisions = Decisions(Target.of_device(device))
    before = gpu_state(device)
    cells: list[Cell] = []
    if cases:
        decisions.compile_ahead([(case, pass_) for case in cases for pass_ in passes])
        timer = CudaTimer(device)
        for case in cases:
            for cell in run_case(case, passes, implementations, timer, decisions.record, device):
                on_cell(cell)
                cells.append(cell)
    host_cost: HostCost | Failure
    try:
        host_cost = measure_host_cost(decisions, device)
    except Exception as error:  # the cells that were measured are not lost for it
        host_cost = failure_of(error)
    return Results(
        created=created.isoformat(timespec="seconds"),
        environment=environment(device, before, gpu_state(device)),
        implementations={each.name: each.label for each in implementations},
        cells=cells,
        host_cost=host_cost,
        seconds=round(perf_counter() - started, 1),
    )

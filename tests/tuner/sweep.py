"""The committed sweep of an H200, as configs of the portable schedule with their measured speed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnforge.codegen import AttentionSpec, Config, DType, HeadDimSplit, Pass, Schedule, schedule_of
from attnforge.codegen.schedules.portable.config import DKDV_FIELDS, DQ_FIELDS, TILE_FIELDS
from attnforge.compilation import KernelReport
from attnforge.problem import Problem
from attnforge.target import Target

PATH = Path(__file__).parents[2] / "benchmarks" / "sweeps" / "h200-2026-11-23.json"
H200 = Target(arch="sm_90", name="NVIDIA H200", sm_count=132, shared_memory=232448)


@dataclass(frozen=True)
class Sample:
    """One kernel of the sweep."""

    config: Config
    report: KernelReport
    tflops: float


@dataclass(frozen=True)
class Sweep:
    """All samples of one kernel on one problem."""

    kernel: str
    spec: AttentionSpec
    problem: Problem
    samples: tuple[Sample, ...]


def sweeps() -> Iterator[Sweep]:
    """Every kernel and problem of which at least ten configs were measured."""
    document = json.loads(PATH.read_text())
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in document["rows"]:
        if row["tflops"] is not None:
            groups[row["kernel"], row["head_dim"], row["causal"], row["seqlen"]].append(row)
    for (kernel, head_dim, causal, seqlen), rows in groups.items():
        pass_ = Pass.FORWARD if kernel == "forward" else Pass.BACKWARD
        spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
        heads = max(1, document["hidden"] // head_dim)
        batch = document["tokens"] // seqlen
        problem = Problem(batch=batch, heads=heads, kv_heads=heads, seqlen_q=seqlen, seqlen_k=seqlen, dtype=DType.BF16)
        if len(rows) >= 10:
            yield Sweep(kernel, spec, problem, tuple(_sample(kernel, spec, row) for row in rows))


def _sample(kernel: str, spec: AttentionSpec, row: dict[str, Any]) -> Sample:
    default = schedule_of(Schedule.PORTABLE, spec.pass_).default(spec, DType.BF16, H200.limits)
    fields = {"forward": TILE_FIELDS, "dkdv": DKDV_FIELDS, "dq": DQ_FIELDS}[kernel]
    swept = {field: row[field.removeprefix(f"{kernel}_")] for field in fields}
    values = {field: getattr(default, field) for field in default.__dataclass_fields__} | swept
    values["head_dim_split"] = HeadDimSplit.CHUNKS
    serialised = ("C7515",) if row["serialised"] else ()
    report = KernelReport(kernel, row["shared_bytes"], row["registers"], row["spill_bytes"], serialised)
    return Sample(type(default)(**values), report, row["tflops"])

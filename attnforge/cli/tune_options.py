"""The options of ``attnforge tune`` that no other command has."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from attnforge.codegen import Schedule
from attnforge.tuner.strategy import StrategyName


def _duration(text: str) -> float:
    """Seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text)
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90s, 5m or 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


SeqlenOption = Annotated[
    list[int] | None,
    typer.Option(
        "--seqlen", min=1, help="Sequence length to tune for; repeat it for several. \\[default: 1024, 4096, 16384]"
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Predict for an arch such as sm_80 or gfx942 instead of measuring: nothing runs on a GPU. The entries are "
        "marked as predicted, and a tune on such a GPU replaces them. Has bounds of its own: --trials says how many"
        " configs are compiled, --budget is not taken.",
    ),
]
QuickOption = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="One sequence length (4096), fewer configs, 10 trials and 3m; with --target 5 trials, and head dims 64 and"
        " 128 alone.",
    ),
]
TrialsOption = Annotated[
    int | None,
    typer.Option(
        "--trials",
        min=1,
        help="Configs to try for each kernel, earlier runs' included, unless nothing promises more before."
        " \\[default: 32; with --target 16]",
    ),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget", parser=_duration, metavar="TIME",
        help="Time for everything, such as 90s, 5m or 1h; the kernels share it, and those that it leaves none for are"
        " the first of the next tune. \\[default: 7m]",
    ),
]  # fmt: skip
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Compilers at once. \\[default: one a core, less one that measures]"),
]
ScheduleOption = Annotated[
    list[Schedule] | None,
    typer.Option(
        "--schedule",
        help="Search this schedule alone; repeat it for several. hopper is for sm_90. \\[default: every one that can do"
        " a kernel on the GPU]",
    ),
]
StrategyOption = Annotated[
    StrategyName,
    typer.Option(
        "--strategy",
        help="What proposes configs: gaussian learns from what was measured, and ends when nothing promises to be"
        " faster; random; or exhaustive, which tries every config unless --trials or --budget ends it.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the proposals.")]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage", metavar="URL",
        help="Database of the trials: tuners on any number of machines that name the same one share the work."
        " \\[default: a SQLite file of your own]",
    ),
]  # fmt: skip
FreshOption = Annotated[bool, typer.Option("--fresh", help="Forget what earlier runs measured and start over.")]

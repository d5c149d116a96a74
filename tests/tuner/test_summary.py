from datetime import UTC, datetime
from io import StringIO

from rich.console import Console

from attnforge.cache.schema import Source, TunedEntry
from attnforge.codegen import AttentionSpec, DType, Pass, Schedule
from attnforge.codegen.schedules import DEFINITIONS
from attnforge.problem import Bucket
from attnforge.tuner.result import ProblemResult, SpecResult, Verdict
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.summary import summary
from attnforge.tuner.task import self_attention
from tests.tuner.fake_device import TARGET, VERSIONS

SPEC = AttentionSpec(pass_=Pass.FORWARD, head_dim=128, head_dim_v=128, causal=True)
HOPPER = SearchSpace(SPEC, DEFINITIONS[Schedule.HOPPER, Pass.FORWARD], DType.BF16, TARGET.limits)
LONGEST = max(HOPPER.configs, key=lambda config: len(config.name))


def result(ended_early: bool = False) -> SpecResult:
    """Of a hopper config with a long name."""
    problem = self_attention(128, 4096, DType.BF16)
    entry = TunedEntry(
        spec=SPEC,
        problem=problem,
        bucket=Bucket.of(problem),
        schedule=Schedule.HOPPER,
        config=LONGEST,
        source=Source.MEASURED,
        median_ms=1.234,
        default_ms=2.468,
        tflops=567.0,
        gain=2.0,
        trials=7,
        created=datetime.now(UTC),
        toolchain=VERSIONS.toolchain(Schedule.HOPPER, Pass.FORWARD),
    )
    return SpecResult(SPEC, (ProblemResult(problem, Verdict.CHOSEN, entry),), 7, ended_early=ended_early)


def shown(width: int, *results: SpecResult) -> list[str]:
    file = StringIO()
    Console(file=file, width=width).print(summary(results))
    return file.getvalue().splitlines()


def test_a_config_is_named_with_its_schedule_in_one_row() -> None:
    (row,) = (line for line in shown(160, result()) if SPEC.name in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        SPEC.name, "4096", f"hopper/{LONGEST.name}", "1.234", "567", "2.00", "7"
    ]  # fmt: skip


def test_at_80_columns_no_word_is_broken_and_no_column_is_lost() -> None:
    lines = shown(80, result())
    assert all(len(line) <= 80 for line in lines)
    (place,) = (place for place, line in enumerate(lines) if line.startswith(SPEC.name))
    assert lines[place].split() == [SPEC.name, "4096", "1.234", "567", "2.00", "7"]
    assert lines[place + 1].strip() == f"hopper/{LONGEST.name}"
    assert lines[1].split() == ["spec", "seqlen", "ms", "TFLOP/s", "x", "default", "trials"]


def test_a_search_that_was_out_of_time_is_marked() -> None:
    for width in (80, 160):
        assert not any("*" in line for line in shown(width, result()))
        lines = shown(width, result(ended_early=True))
        assert any("7*" in line for line in lines)
        assert any(line.startswith("* out of time") for line in lines)

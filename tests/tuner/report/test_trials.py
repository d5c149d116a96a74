from datetime import UTC, datetime

from attnforge.codegen import DType, HeadDimSplit, PortableForwardConfig, Schedule, Variant
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.report.failures import failures_by_kind
from attnforge.tuner.report.recorded_studies import RecordedStudy
from attnforge.tuner.report.trials import FailedOn, Trial, trials_of
from attnforge.tuner.task import self_attention
from attnforge.tuner.trial import Outcome
from tests.tuner.report.fabricated import a_spec

NOW = datetime(2026, 11, 23, tzinfo=UTC)
RAN, CRASH = Measurement({"forward": 1.0}, 7), Failure(FailureKind.CRASH, "it died")
TIMEOUT = Failure(FailureKind.TIMEOUT, "too long")


def a_variant(block_m: int) -> Variant:
    config = PortableForwardConfig(
        block_m=block_m, block_n=64, num_warps=4, num_stages=3, head_dim_split=HeadDimSplit.CHUNKS
    )
    return Variant(a_spec(), Schedule.PORTABLE, config)


def study(seqlen: int, *outcomes: Outcome, dtype: DType = DType.BF16, triton: str = "3.6.0") -> RecordedStudy:
    found = {a_variant(64 << place): outcome for place, outcome in enumerate(outcomes)}
    return RecordedStudy(a_spec(), self_attention(64, seqlen, dtype), triton, {}, found, NOW, NOW)


def test_a_config_that_failed_on_several_problems_is_one_failed_trial() -> None:
    short, long = study(1024, RAN, CRASH, RAN), study(4096, RAN, TIMEOUT, TIMEOUT)
    trials = trials_of([short, long])
    assert trials == (
        Trial(a_variant(64), None),
        Trial(a_variant(128), FailedOn(short.problem, CRASH)),
        Trial(a_variant(256), FailedOn(long.problem, TIMEOUT)),
    )
    assert {each.kind: each.count for each in failures_by_kind(trials)} == {
        FailureKind.CRASH: 1,
        FailureKind.TIMEOUT: 1,
    }


def test_another_dtype_or_triton_is_another_tune() -> None:
    again = study(1024, CRASH, dtype=DType.FP16), study(1024, RAN, triton="3.7.0")
    assert len(trials_of([study(1024, CRASH), *again])) == 3

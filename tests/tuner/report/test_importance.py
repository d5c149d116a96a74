from pathlib import Path

import pytest

from attnforge.codegen import DType, Pass
from attnforge.settings import Settings
from attnforge.tuner.report.importance import MIN_MEASURED, Importance, NoImportance, importance_of
from attnforge.tuner.report.recorded_studies import RecordedStudy, read_studies
from attnforge.tuner.task import self_attention
from tests.tuner.report.fabricated import H200, a_spec, record_study


def recorded(folder: Path, pass_: Pass, trials: int) -> tuple[RecordedStudy, ...]:
    settings, spec = Settings(folder), a_spec(pass_)
    record_study(settings, spec, self_attention(64, 1024, DType.BF16), trials=trials, failures=())
    return read_studies(settings.studies_dir / f"{H200.slug}.sqlite3").studies


def test_the_field_that_decides_comes_first(tmp_path: Path) -> None:
    found = importance_of(a_spec(), recorded(tmp_path, Pass.FORWARD, 32))
    assert isinstance(found, Importance)
    shares = dict(found.shares)
    assert next(iter(shares)) == "block_m", "which the fabricated times depend on most"
    assert shares["block_m"] > 2 * shares["num_stages"]
    assert sum(shares.values()) == pytest.approx(1.0)


def test_too_few_measurements_are_left_out_with_the_reason(tmp_path: Path) -> None:
    found = importance_of(a_spec(), recorded(tmp_path, Pass.FORWARD, MIN_MEASURED - 1))
    assert found == NoImportance(a_spec(), "19 measured configs; it takes 20 on one problem")


def test_a_backwards_kernels_are_told_apart(tmp_path: Path) -> None:
    found = importance_of(a_spec(Pass.BACKWARD), recorded(tmp_path, Pass.BACKWARD, 60))
    assert isinstance(found, Importance)
    assert {"dkdv_block_m", "dq_block_m"} <= dict(found.shares).keys()

from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, TemplateSet, schedule_of
from attnforge.problem import Problem
from attnforge.settings import Settings
from attnforge.tuner.report.recorded_studies import read_studies
from attnforge.tuner.study import Studies, StudiesUnusableError
from attnforge.tuner.task import self_attention
from tests.tuner.report.fabricated import H200, VERSIONS, a_spec, record_study


def path_in(settings: Settings) -> Path:
    return settings.studies_dir / f"{H200.slug}.sqlite3"


def test_every_trial_is_read_with_its_spec_problem_toolchain_and_dates(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    spec = AttentionSpec(pass_=Pass.BACKWARD, head_dim=192, head_dim_v=128, causal=False)
    problem = Problem(batch=2, heads=16, kv_heads=4, seqlen_q=1, seqlen_k=4096, dtype=DType.FP16)
    outcomes = record_study(settings, spec, problem, trials=6)
    (study,) = read_studies(path_in(settings)).studies
    assert (study.spec, study.problem, study.triton) == (spec, problem, "3.6.0")
    digest = TemplateSet.installed().digest_of(schedule_of(Schedule.PORTABLE, spec.pass_))
    assert study.templates == {Schedule.PORTABLE: digest}
    assert list(study.outcomes.items()) == list(outcomes.items())
    assert (len(study.measurements), len(study.failures)) == (5, 1)
    now = datetime.now(UTC)
    assert now - timedelta(minutes=5) < study.began <= study.ended <= now


def test_forward_goes_before_backward_and_small_before_large(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    for spec, seqlen in (
        (a_spec(Pass.BACKWARD), 1024),
        (a_spec(head_dim=128), 1024),
        (a_spec(), 16384),
        (a_spec(), 64),
    ):
        record_study(settings, spec, self_attention(spec.head_dim, seqlen, DType.BF16), trials=1)
    read = [(study.spec.name, study.problem.seqlen_q) for study in read_studies(path_in(settings)).studies]
    names = ["forward_d64_causal", "forward_d64_causal", "forward_d128_causal", "backward_d64_causal"]
    assert read == list(zip(names, (64, 16384, 1024, 1024), strict=True))


def test_what_is_not_the_tuners_is_named_and_what_has_no_trial_is_left_out(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    Studies(settings, H200).study(a_spec(), self_attention(64, 1024, DType.BF16), VERSIONS)
    for name in ("mine", "forward_d7_full/bfloat16_b1_h1x1_q1_k1/triton-3.6.0"):
        optuna.create_study(study_name=name, storage=f"sqlite:///{path_in(settings)}")
    read = read_studies(path_in(settings))
    assert read.studies == ()
    assert read.unread == ("forward_d7_full/bfloat16_b1_h1x1_q1_k1/triton-3.6.0", "mine")


def test_no_file_is_no_studies_and_none_is_made(tmp_path: Path) -> None:
    assert read_studies(tmp_path / "none.sqlite3").studies == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look like one" * 30])
def test_a_file_that_is_none_is_named_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sm_90.sqlite3"
    path.write_bytes(content)
    with pytest.raises(StudiesUnusableError, match=r"sm_90\.sqlite3"):
        read_studies(path)
    assert path.read_bytes() == content

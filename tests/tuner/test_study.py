from dataclasses import replace
from pathlib import Path

import pytest

from attnforge.cache.schema import Versions
from attnforge.codegen import (
    AttentionSpec,
    DType,
    HeadDimSplit,
    Pass,
    Schedule,
    TemplateSet,
    Variant,
    default_configs,
    schedule_of,
)
from attnforge.compilation import Failure, FailureKind
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.study import Studies, StudiesUnusableError, Study, StudyInUseError
from attnforge.tuner.task import self_attention
from tests.runtime.cache.entries import LATE, measured

TARGET = Target.for_arch("sm_90")
VERSIONS = Versions(triton="3.6.0", torch="2.11.0")
SPEC = AttentionSpec(pass_=Pass.BACKWARD, head_dim=80, head_dim_v=80, causal=True)
VARIANT = Variant(SPEC, *default_configs(SPEC, DType.BF16, TARGET.limits)[-1])
OTHER = replace(VARIANT, config=replace(VARIANT.config, head_dim_split=HeadDimSplit.PADDED, dq_num_warps=4))
PROBLEM = self_attention(80, 1024, DType.BF16)
MEASUREMENT = Measurement({"delta": 0.01, "dkdv": 1.5, "dq": 1.25}, runs=9, stopped_early=True)
FAILURE = Failure(FailureKind.CRASH, "its process died of SIGSEGV\nand said so")


def study_in(folder: Path, versions: Versions = VERSIONS, seqlen: int = 1024, target: Target = TARGET) -> Study:
    return Studies(Settings(folder), target).study(SPEC, self_attention(80, seqlen, DType.BF16), versions)


def test_what_was_recorded_is_there_for_the_next_process(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    study.record(VARIANT, MEASUREMENT)
    study.record(OTHER, FAILURE)
    again = study_in(tmp_path)
    assert again.outcomes == {VARIANT: MEASUREMENT, OTHER: FAILURE}
    entry, another = measured(), measured(created=LATE)
    assert again.confirmed_trials(entry) == 0
    again.confirm(entry)
    assert study_in(tmp_path).confirmed_trials(entry) == 2
    assert study_in(tmp_path).confirmed_trials(another) == 0, "another machine has an entry of its own"


def test_nothing_is_recorded_twice(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    study.record(VARIANT, MEASUREMENT)
    assert not study.record(VARIANT, FAILURE)
    assert study.outcomes == study_in(tmp_path).outcomes == {VARIANT: MEASUREMENT}


def test_other_problems_tritons_and_targets_have_studies_of_their_own(tmp_path: Path) -> None:
    study_in(tmp_path).record(VARIANT, MEASUREMENT)
    assert study_in(tmp_path, seqlen=4096).outcomes == {}
    assert study_in(tmp_path, Versions(triton="3.7.0", torch="2.11.0")).outcomes == {}
    assert study_in(tmp_path, target=Target.for_arch("sm_80")).outcomes == {}
    assert study_in(tmp_path).outcomes == {VARIANT: MEASUREMENT}


FORWARD = AttentionSpec(pass_=Pass.FORWARD, head_dim=80, head_dim_v=80, causal=True)


def of_schedule(schedule: Schedule) -> Variant:
    return Variant(FORWARD, schedule, schedule_of(schedule, Pass.FORWARD).default(FORWARD, DType.BF16, TARGET.limits))


def test_other_templates_of_a_schedule_start_its_part_afresh_and_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study() -> Study:
        return Studies(Settings(tmp_path), TARGET).study(FORWARD, PROBLEM, VERSIONS)

    portable, hopper = of_schedule(Schedule.PORTABLE), of_schedule(Schedule.HOPPER)
    study().record(portable, MEASUREMENT)
    study().record(hopper, MEASUREMENT)
    assert set(study().outcomes) == {portable, hopper}
    digest_of = TemplateSet.digest_of
    monkeypatch.setattr(
        TemplateSet,
        "digest_of",
        lambda self, definition: "0" * 16 if definition.schedule is Schedule.HOPPER else digest_of(self, definition),
    )
    assert set(study().outcomes) == {portable}
    study().record(hopper, FAILURE)
    assert study().outcomes == {portable: MEASUREMENT, hopper: FAILURE}


def test_a_study_can_be_started_over(tmp_path: Path) -> None:
    study_in(tmp_path).record(VARIANT, MEASUREMENT)
    Studies(Settings(tmp_path), TARGET).discard([(SPEC, PROBLEM)], VERSIONS)
    assert study_in(tmp_path).outcomes == {}


def test_studies_are_all_forgotten_or_none_while_another_tuner_tries_something(tmp_path: Path) -> None:
    first, second = study_in(tmp_path), study_in(tmp_path, seqlen=4096)
    first.record(VARIANT, MEASUREMENT)
    assert second.claim(VARIANT)
    wanted = [(SPEC, self_attention(80, seqlen, DType.BF16)) for seqlen in (1024, 4096)]
    studies = Studies(Settings(tmp_path), TARGET)
    with pytest.raises(StudyInUseError, match=r"backward_d80_causal.*--fresh"):
        studies.discard(wanted, VERSIONS)
    assert study_in(tmp_path).outcomes == {VARIANT: MEASUREMENT}
    second.release()
    studies.discard(wanted, VERSIONS)
    assert study_in(tmp_path).outcomes == {}


def test_two_tuners_share_a_file(tmp_path: Path) -> None:
    one, two = study_in(tmp_path), study_in(tmp_path)
    one.record(VARIANT, MEASUREMENT)
    two.record(OTHER, FAILURE)
    assert set(study_in(tmp_path).outcomes) == {VARIANT, OTHER}


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look like one" * 30])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = Settings(tmp_path).studies_dir
    folder.mkdir(parents=True)
    (folder / "sm_90.sqlite3").write_bytes(content)
    with pytest.raises(StudiesUnusableError, match=r"sm_90\.sqlite3"):
        study_in(tmp_path)


def test_only_the_user_may_look_into_a_new_folder(tmp_path: Path) -> None:
    study_in(tmp_path / "new")
    assert (tmp_path / "new" / "studies").stat().st_mode & 0o777 == 0o700

import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule
from attnforge.codegen.schedules.portable import FORWARD
from attnforge.settings import Settings
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.report.importance import MIN_MEASURED, Importances, TooFew, importances
from attnforge.tuner.report.recorded_studies import RecordedStudy, read_studies
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.task import self_attention
from tests.tuner.report import fabricated
from tests.tuner.report.fabricated import H200, a_spec, record_study

NOW = datetime(2026, 11, 23, tzinfo=UTC)
PROBLEM = self_attention(64, 1024, DType.BF16)


def told(folder: Path, trials: dict[AttentionSpec, int], seqlens: tuple[int, ...] = (1024,)) -> Importances:
    settings = Settings(folder)
    for spec, count in trials.items():
        for seqlen in seqlens:
            problem = self_attention(spec.head_dim, seqlen, DType.BF16)
            record_study(settings, spec, problem, trials=count, failures=())
    return importances(read_studies(settings.studies_dir / f"{H200.slug}.sqlite3").studies)


def test_the_field_that_decides_comes_first_and_stands_out(tmp_path: Path) -> None:
    (found,) = told(tmp_path, {a_spec(): 32}).found
    shares = {share.field: share.share for share in found.shares}
    first = found.shares[0]
    assert (first.field, first.stands_out) == ("block_m", True), "which the fabricated times depend on most"
    assert all(first.share > 2 * share for field, share in shares.items() if field != "block_m")
    assert first.share <= 1
    assert "num_stages" not in [share.field for share in found.shares if share.stands_out]


def test_too_few_measurements_are_left_out(tmp_path: Path) -> None:
    found = told(tmp_path, {a_spec(): MIN_MEASURED - 1})
    assert found == Importances((), (TooFew(a_spec(), {Schedule.PORTABLE: MIN_MEASURED - 1}),))


def test_a_config_counts_once_on_however_many_problems(tmp_path: Path) -> None:
    found = told(tmp_path, {a_spec(): MIN_MEASURED - 1}, seqlens=(1024, 4096, 16384))
    assert found.found == ()
    (found,) = told(tmp_path / "enough", {a_spec(): MIN_MEASURED}, seqlens=(1024, 4096, 16384)).found
    assert found.configs == MIN_MEASURED


def test_specs_with_few_configs_each_tell_together(tmp_path: Path) -> None:
    specs = [a_spec(head_dim=head_dim, causal=causal) for head_dim in (64, 80) for causal in (False, True)]
    found = told(tmp_path, dict.fromkeys(specs, 8))
    (together,) = found.found
    assert (together.name, together.specs, together.configs) == ("forward", 4, 32)
    assert next(share.field for share in together.shares if share.stands_out) == "block_m"
    assert {few.spec for few in found.too_few} == set(specs)


def test_configs_that_are_equally_fast_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabricated, "milliseconds", lambda *_: {"forward": 1.0})
    (found,) = told(tmp_path, {a_spec(): 16}).found
    assert found.shares == ()
    assert "block_m" in found.without


def test_times_that_no_field_shapes_seldom_make_one_stand_out() -> None:
    space = SearchSpace(a_spec(), FORWARD, DType.BF16, H200.limits)
    standing_out = 0
    for seed in range(40):
        lot = random.Random(seed)
        outcomes = {
            space.variant(c): Measurement({"forward": lot.uniform(1, 4)}, 7) for c in lot.sample(space.configs, 14)
        }
        (found,) = importances([RecordedStudy(a_spec(), PROBLEM, "3.6.0", {}, outcomes, NOW, NOW)]).found
        standing_out += any(share.stands_out for share in found.shares)
    assert standing_out <= 5, "of 40: two are expected"


def test_a_backwards_kernels_are_told_apart(tmp_path: Path) -> None:
    (found,) = told(tmp_path, {a_spec(Pass.BACKWARD): 60}).found
    assert {"dkdv_block_m", "dq_block_m"} <= {share.field for share in found.shares}

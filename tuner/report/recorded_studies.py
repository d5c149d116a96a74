"""The studies of a target, read for a report: nothing is created or changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import optuna
import sqlalchemy

from attnforge.codegen import AttentionSpec, CodegenError, DType, Pass, Schedule, Variant
from attnforge.compilation import Failure
from attnforge.problem import Problem
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.study import Outcome, StudiesUnusableError, Study

# As Studies.study() and AttentionSpec.name make them.
_STUDY_NAME = re.compile(
    r"(?P<pass>forward|backward)_d(?P<head_dim>\d+)(x(?P<head_dim_v>\d+))?_(?P<mask>causal|full)"
    r"/(?P<dtype>[a-z0-9]+)_b(?P<batch>\d+)_h(?P<heads>\d+)x(?P<kv_heads>\d+)_q(?P<seqlen_q>\d+)_k(?P<seqlen_k>\d+)"
    r"/triton-(?P<triton>.+)"
)


@dataclass(frozen=True, slots=True)
class RecordedStudy:
    """The finished trials of a spec on a problem."""

    spec: AttentionSpec
    problem: Problem
    triton: str
    templates: Mapping[Schedule, str]
    """Digests by schedule: of the last trials, which alone are read."""
    outcomes: Mapping[Variant, Outcome]
    """In the order in which they finished; there is at least one."""
    began: datetime
    """When the first trial was stored, UTC."""
    ended: datetime
    """When the last one was."""

    @property
    def measurements(self) -> dict[Variant, Measurement]:
        """The trials that ran."""
        return {variant: found for variant, found in self.outcomes.items() if isinstance(found, Measurement)}

    @property
    def failures(self) -> dict[Variant, Failure]:
        """The trials that did not."""
        return {variant: found for variant, found in self.outcomes.items() if isinstance(found, Failure)}


@dataclass(frozen=True, slots=True)
class RecordedStudies:
    """What a target's file holds."""

    studies: tuple[RecordedStudy, ...]
    """Sorted by spec and problem; those without a finished trial are left out."""
    unread: tuple[str, ...]
    """Names of studies that this version cannot place."""


def read_studies(path: Path) -> RecordedStudies:
    """The studies in a SQLite file; none where there is no file. Raises StudiesUnusableError."""
    if not path.exists():
        return RecordedStudies((), ())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()
    studies, unread = [], []
    try:
        storage = optuna.storages.RDBStorage(
            url, engine_kwargs={"connect_args": {"timeout": 60}}, skip_table_creation=True
        )
        for name in optuna.get_all_study_names(storage):
            place = _of_name(name)
            if place is None:
                unread.append(name)
                continue
            found = _read(optuna.load_study(study_name=name, storage=storage), *place)
            studies += [found] if found else []
    except (OSError, RuntimeError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StudiesUnusableError(path, error) from error
    studies.sort(key=lambda study: (*place_of(study.spec), study.problem.seqlen_q, study.triton))
    return RecordedStudies(tuple(studies), tuple(sorted(unread)))


def place_of(spec: AttentionSpec) -> tuple[int, int, int, bool]:
    """Sorts specs: forward before backward, then by head dim."""
    return list(Pass).index(spec.pass_), spec.head_dim, spec.head_dim_v, spec.causal


def _of_name(name: str) -> tuple[AttentionSpec, Problem, str] | None:
    """Spec, problem and triton of a study's name; None when it is none of the tuner's."""
    found = _STUDY_NAME.fullmatch(name)
    if found is None:
        return None
    head_dim = int(found["head_dim"])
    sizes = {field: int(found[field]) for field in ("batch", "heads", "kv_heads", "seqlen_q", "seqlen_k")}
    try:
        spec = AttentionSpec(
            pass_=Pass(found["pass"]),
            head_dim=head_dim,
            head_dim_v=int(found["head_dim_v"] or head_dim),
            causal=found["mask"] == "causal",
        )
        return spec, Problem(**sizes, dtype=DType(found["dtype"])), found["triton"]
    except (CodegenError, ValueError):
        return None


def _read(study: optuna.Study, spec: AttentionSpec, problem: Problem, triton: str) -> RecordedStudy | None:
    found = Study(study, spec, templates=None)
    dates = [trial.datetime_complete for trial in study.get_trials(deepcopy=False) if trial.datetime_complete]
    if not found.outcomes or not dates:
        return None
    # Optuna's dates are naive and local.
    began, ended = (date.astimezone(UTC) for date in (min(dates), max(dates)))
    return RecordedStudy(spec, problem, triton, found.templates, found.outcomes, began, ended)

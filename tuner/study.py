"""The trials of a spec on a problem, stored one by one as they finish and read again by whoever resumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from attnforge.cache.schema import Versions
from attnforge.codegen import (
    AttentionSpec,
    CodegenError,
    Config,
    Schedule,
    Variant,
    config_type,
    fields_of,
    schedules_of,
)
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import Failure
from attnforge.errors import AttnforgeError
from attnforge.problem import Problem
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.measurement import Measurement

Outcome = Measurement | Failure
LARGEST_SIZE = 1 << 20
"""Above any integer tunable: Optuna wants bounds, and the same ones each time."""


class StudiesUnusableError(AttnforgeError):
    """The file that holds the studies cannot be read or written."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"the studies in {path} cannot be used ({reason}): move the file away to start afresh")


class Studies:
    """All studies of a target: one SQLite file."""

    def __init__(self, settings: Settings, target: Target) -> None:
        """Open or create studies/<target slug>.sqlite3 in the user's folder. Raises StudiesUnusableError."""
        self.path = settings.studies_dir / f"{target.slug}.sqlite3"
        url = sqlalchemy.URL.create("sqlite", database=str(self.path)).render_as_string()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            for folder in (settings.cache_dir, settings.studies_dir):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Another tuner may hold the file for as long as a transaction takes.
            self._storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        except (OSError, sqlalchemy.exc.DatabaseError) as error:
            raise StudiesUnusableError(self.path, error) from error

    def study(self, spec: AttentionSpec, problem: Problem, versions: Versions) -> Study:
        """The study of a spec on a problem: another triton starts another one, other templates a schedule's part."""
        shape = f"b{problem.batch}_h{problem.heads}x{problem.kv_heads}_q{problem.seqlen_q}_k{problem.seqlen_k}"
        name = f"{spec.name}/{problem.dtype}_{shape}/triton-{versions.triton}"
        study = optuna.create_study(study_name=name, storage=self._storage, load_if_exists=True)
        of_pass = [definition.schedule for definition in schedules_of(spec.pass_)]
        templates = {schedule: versions.toolchain(schedule, spec.pass_).templates for schedule in of_pass}
        return Study(study, spec, templates)

    def discard(self, spec: AttentionSpec, problem: Problem, versions: Versions) -> None:
        """Forget the trials of a study, so that it starts afresh."""
        name = self.study(spec, problem, versions).name
        optuna.delete_study(study_name=name, storage=self._storage)


class Study:
    """Finished trials, failures included, in the order in which they finished. None is stored twice."""

    def __init__(self, study: optuna.Study, spec: AttentionSpec, templates: Mapping[Schedule, str] | None) -> None:
        """``templates`` are the digests that trials must have been made with, by schedule; None for the last ones."""
        self._study = study
        self._spec = spec
        self.outcomes: dict[Variant, Outcome] = {}
        trials = study.get_trials(deepcopy=False)
        self.templates = _last_templates(trials) if templates is None else templates
        """Digest by schedule, see Toolchain."""
        for trial in trials:
            finished = self._read(trial)
            if finished is not None:
                self.outcomes.setdefault(*finished)

    @property
    def name(self) -> str:
        """Of the study in its storage."""
        return str(self._study.study_name)

    @property
    def confirmed_trials(self) -> int:
        """How many trials there were when its winner was last confirmed and written; 0 before."""
        return int(self._study.user_attrs.get("confirmed_trials", 0))

    def confirm(self) -> None:
        """Note that the winner among the trials so far is in the tuned cache."""
        self._study.set_user_attr("confirmed_trials", len(self.outcomes))

    def record(self, variant: Variant, outcome: Outcome) -> None:
        """Store a trial: it is on disk when this returns."""
        if variant in self.outcomes:
            raise ValueError(f"{variant.name} was tried before")
        params = {f"{variant.schedule}.{field}": _plain(value) for field, value in fields_of(variant.config).items()}
        distributions = {
            f"{variant.schedule}.{field}": _distribution(value) for field, value in fields_of(variant.config).items()
        }
        failed = isinstance(outcome, Failure)
        self._study.add_trial(
            create_trial(
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                value=None if isinstance(outcome, Failure) else outcome.total_ms,
                params=params,
                distributions=distributions,
                user_attrs={
                    "schedule": str(variant.schedule),
                    "templates": self.templates[variant.schedule],
                    "outcome": msgspec.to_builtins(outcome),
                },
            )
        )
        self.outcomes[variant] = outcome

    def _read(self, trial: FrozenTrial) -> tuple[Variant, Outcome] | None:
        """None for a trial that was not stored by record(), of other templates, or whose config no longer exists."""
        if "outcome" not in trial.user_attrs:
            return None
        try:
            schedule = Schedule(trial.user_attrs["schedule"])
            if trial.user_attrs["templates"] != self.templates[schedule]:
                return None
            fields = {name.removeprefix(f"{schedule}."): value for name, value in trial.params.items()}
            config: Config = msgspec.convert(fields, config_type(schedule, self._spec.pass_))
            outcome: Outcome = msgspec.convert(trial.user_attrs["outcome"], Outcome)
            return Variant(self._spec, schedule, config), outcome
        except (CodegenError, msgspec.ValidationError, KeyError, ValueError):
            return None


def _last_templates(trials: Iterable[FrozenTrial]) -> dict[Schedule, str]:
    recorded = [trial.user_attrs for trial in trials if "outcome" in trial.user_attrs]
    known = [attrs for attrs in recorded if attrs["schedule"] in set(Schedule)]
    return {Schedule(attrs["schedule"]): str(attrs["templates"]) for attrs in known}


def _plain(value: Choice) -> Any:
    return value if isinstance(value, bool | int) else str(value)


def _distribution(value: Choice) -> BaseDistribution:
    if isinstance(value, bool):
        return CategoricalDistribution((False, True))
    if isinstance(value, int):
        return IntDistribution(0, LARGEST_SIZE)
    return CategoricalDistribution(tuple(str(member) for member in type(value)))

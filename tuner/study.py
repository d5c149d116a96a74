"""The trials of a spec on a problem, stored one by one; whoever resumes or shares them reads them again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from attnforge.cache.schema import TunedEntry, Versions
from attnforge.codegen import AttentionSpec, Variant, schedules_of
from attnforge.compilation import Failure
from attnforge.errors import AttnforgeError
from attnforge.problem import Problem
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.claimant import Heart, has_ended, this_process
from attnforge.tuner.storage import STORAGE_ERRORS, StorageUnusableError, innermost, open_storage, sqlite_url
from attnforge.tuner.trial import Outcome, Templates, outcome_of, running_trial, variant_of

LONGEST_TRIAL_S = 3600.0
"""No trial runs for so long: whoever claimed it died before the first sign of life."""
SWEEP_S = 5.0
"""Between two looks for tuners that have died."""


class StudiesUnusableError(AttnforgeError):
    """The file that holds the studies cannot be read or written."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"the studies in {path} cannot be used ({innermost(error)}): {_remedy(error)}")


def _remedy(error: Exception) -> str:
    reason = str(innermost(error))
    if isinstance(error, OSError) or "unable to open" in reason or "readonly" in reason:
        return "make the folder one that you can write, or move it with ATTNFORGE_CACHE_DIR"
    if "locked" in reason or "full" in reason:
        return "try again when that has passed"
    return "move the file away to start afresh"


class StudyInUseError(AttnforgeError):
    """What is to be forgotten is what another tuner works on."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(f"another tune is trying configs of {spec.name}: wait for its end, or leave --fresh out")


class TrialsForgottenError(AttnforgeError):
    """Another tuner has deleted the study that this one works on."""

    def __init__(self) -> None:
        super().__init__(
            "another tune has forgotten the trials of this one (--fresh): what is in the tuned cache stays, the same"
            " command starts the rest afresh"
        )


class Studies:
    """All studies of a target, in a SQLite file of its own or in a storage that tuners share. A context manager."""

    def __init__(self, settings: Settings, target: Target, url: str | None = None) -> None:
        """Open or create what ``url`` names, or studies/<target slug>.sqlite3 in the user's folder.

        Raises StudiesUnusableError for the file, StorageUnusableError for a URL.
        """
        self._prefix = "" if url is None else f"{target.slug}/"
        path = settings.studies_dir / f"{target.slug}.sqlite3"
        try:
            if url is None:
                for folder in (settings.cache_dir, settings.studies_dir):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Optuna's cache in front of it: finished trials are read once.
            self._storage = optuna.storages.get_storage(open_storage(url or sqlite_url(path)))
        except STORAGE_ERRORS as error:
            raise (StudiesUnusableError(path, error) if url is None else StorageUnusableError(url, error)) from error
        self._heart = Heart(self._storage)
        self._open: list[Study] = []

    def study(self, spec: AttentionSpec, problem: Problem, versions: Versions) -> Study:
        """The study of a spec on a problem: another triton starts another one, other templates a schedule's part."""
        shape = f"b{problem.batch}_h{problem.heads}x{problem.kv_heads}_q{problem.seqlen_q}_k{problem.seqlen_k}"
        name = f"{self._prefix}{spec.name}/{problem.dtype}_{shape}/triton-{versions.triton}"
        study = optuna.create_study(study_name=name, storage=self._storage, load_if_exists=True)
        of_pass = [definition.schedule for definition in schedules_of(spec.pass_)]
        templates = {schedule: versions.toolchain(schedule, spec.pass_).templates for schedule in of_pass}
        self._open.append(Study(study, self._storage, self._heart, spec, templates))
        return self._open[-1]

    def discard(self, wanted: Iterable[tuple[AttentionSpec, Problem]], versions: Versions) -> None:
        """Forget the trials of studies, so that they start afresh: of all of them, or of none when another tuner tries
        something. Raises StudyInUseError then."""
        found = []
        for spec, problem in wanted:
            found.append(self.study(spec, problem, versions))
            self._open.remove(found[-1])
            if found[-1].elsewhere:
                raise StudyInUseError(spec)
        for study in found:
            optuna.delete_study(study_name=study.name, storage=self._storage)

    def close(self) -> None:
        """Give up what was claimed and not finished, so that whoever comes next need not wait."""
        self._heart.close()
        for study in self._open:
            study.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Study:
    """Finished trials, failures included. None is stored twice, whoever else works on the same study.

    A tuner claims a variant before it tries it: it stores a running trial, and looks who else has one. The trial with
    the least number counts, the others are given up; the storage numbers them one after the other. A claim lasts until
    its outcome is stored or its tuner is found dead: by its process where that ran on this machine, by its heartbeat
    elsewhere. Then the claim is failed, and whoever it was cannot finish it any more: Optuna refuses.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: optuna.storages.BaseStorage,
        heart: Heart,
        spec: AttentionSpec,
        templates: Templates,
    ) -> None:
        self._study = study
        self._storage = storage
        self._heart = heart
        self._spec = spec
        self.templates = templates
        self._id = storage.get_study_id_from_name(study.study_name)
        self._owner = this_process()
        self._claims: dict[Variant, int] = {}
        self._read: set[int] = set()
        self._swept = -SWEEP_S
        self._news: dict[Variant, Outcome] = {}
        self.outcomes: dict[Variant, Outcome] = {}
        self.elsewhere: frozenset[Variant] = frozenset()
        """What other tuners were trying when the study was last read."""
        self.refresh()
        self.news()

    @property
    def name(self) -> str:
        """Of the study in its storage."""
        return str(self._study.study_name)

    def confirmed_trials(self, entry: TunedEntry) -> int:
        """How many trials there were when an entry was chosen among them and written; 0 for others.

        Each tuner that shares the study has a tuned cache, and entries, of its own.
        """
        return int(self._study.user_attrs.get(_confirmation(entry), 0))

    def confirm(self, entry: TunedEntry) -> None:
        """Note that an entry was chosen among the trials so far, and is in a tuned cache."""
        self._study.set_user_attr(_confirmation(entry), len(self.outcomes))

    @property
    def claimed(self) -> frozenset[Variant]:
        """What is this tuner's to try."""
        return frozenset(self._claims)

    def claim(self, variant: Variant) -> bool:
        """Whether a variant is this tuner's to try: from now on, and nobody else's. Everything is read again."""
        if variant in self._claims:
            return True
        if variant in self.outcomes or variant in self.elsewhere:
            return False
        trial = running_trial(variant, self.templates, owner=self._owner, since=time.time())
        trial_id = self._storage.create_new_trial(self._id, trial)
        self._claims[variant] = trial_id
        self._heart.add(trial_id)
        self.refresh()
        if variant in self.outcomes or variant in self.elsewhere:
            self._give_up(variant)
            return False
        return True

    def refresh(self) -> None:
        """Read what others have done since: see news()."""
        self._fail_the_dead()
        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        running = {trial.number: trial for trial in trials if trial.state is TrialState.RUNNING}
        self._drop_lost_claims({trial._trial_id for trial in running.values()})
        own = {trial._trial_id: number for number, trial in running.items() if trial._trial_id in self._claims.values()}
        self.elsewhere = frozenset(self._others(running, own))
        for trial in trials:
            if trial.number in self._read or not trial.state.is_finished():
                continue
            self._read.add(trial.number)
            variant, outcome = self._variant(trial), outcome_of(trial)
            if variant is not None and outcome is not None and variant not in self.outcomes:
                self.outcomes[variant] = self._news[variant] = outcome

    def news(self) -> dict[Variant, Outcome]:
        """The outcomes that others have stored since this was asked last."""
        news, self._news = self._news, {}
        return news

    def record(self, variant: Variant, outcome: Outcome) -> bool:
        """Store a trial, which is claimed first unless it was: it is on disk when this returns.

        False, and nothing is stored, when another tuner has it, or has finished it: it took this one for dead.
        """
        if not self.claim(variant):
            return False
        trial_id = self._claims.pop(variant)
        self._heart.remove(trial_id)
        failed = isinstance(outcome, Failure)
        try:
            self._storage.set_trial_user_attr(trial_id, "outcome", msgspec.to_builtins(outcome))
            self._storage.set_trial_state_values(
                trial_id,
                TrialState.FAIL if failed else TrialState.COMPLETE,
                None if isinstance(outcome, Failure) else [outcome.total_ms],
            )
        except UpdateFinishedTrialError:
            return False
        self.outcomes[variant] = outcome
        return True

    def release(self) -> None:
        """Give up every claim: others may have them."""
        for variant in tuple(self._claims):
            self._give_up(variant)

    def _drop_lost_claims(self, running: set[int]) -> None:
        """Forget those that another tuner has ended, which took this one for dead."""
        for variant, trial_id in tuple(self._claims.items()):
            if trial_id not in running:
                self._heart.remove(self._claims.pop(variant))

    def _variant(self, trial: FrozenTrial) -> Variant | None:
        return variant_of(trial, self._spec, self.templates)

    def _give_up(self, variant: Variant) -> None:
        trial_id = self._claims.pop(variant)
        self._heart.remove(trial_id)
        self._fail(trial_id)

    def _fail(self, trial_id: int) -> None:
        """End a trial without an outcome. One that has ended meanwhile is left as it is."""
        try:
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return

    def _others(self, running: dict[int, FrozenTrial], own: dict[int, int]) -> list[Variant]:
        """What others run. Of two claims to one variant the earlier counts."""
        mine = {variant: own.get(trial_id) for variant, trial_id in self._claims.items()}
        found = []
        for number, trial in running.items():
            variant = None if trial._trial_id in own else self._variant(trial)
            if variant is not None:
                own_number = mine.get(variant)
                found += [variant] if own_number is None or number < own_number else []
        return found

    def _fail_the_dead(self) -> None:
        """End the claims of tuners that are gone."""
        if time.monotonic() < self._swept + SWEEP_S:
            return
        self._swept = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        for trial in self._storage.get_all_trials(self._id, deepcopy=False, states=(TrialState.RUNNING,)):
            attributes = trial.user_attrs
            if has_ended(attributes.get("owner", "")) or time.time() - attributes.get("since", 0) > LONGEST_TRIAL_S:
                self._fail(trial._trial_id)


def _confirmation(entry: TunedEntry) -> str:
    """The study's attribute for an entry, which its date tells from all others."""
    return f"confirmed {entry.created.isoformat()}"

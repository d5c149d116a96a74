"""What a report is made of: which target, its tuned cache, its studies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from attnforge.cache.reader import read_users_cache
from attnforge.cache.schema import TunedEntry
from attnforge.errors import AttnforgeError, CacheRefused, NoGpuError, UnknownTargetError
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.report.recorded_studies import RecordedStudy, place_of, read_shared_studies, read_studies


class NothingToReportError(AttnforgeError):
    """Nothing was tuned, or not for the target that was asked for."""

    def __init__(self, wanted: str | None, tuned: Iterable[str], settings: Settings) -> None:
        what = "nothing was tuned yet" if wanted is None else f"nothing was tuned for {wanted}"
        listed = ", ".join(tuned)
        remedy = f"--target takes what was: {listed}" if listed else "run `attnforge tune` first"
        super().__init__(f"{what} (no tuned cache or studies in {settings.cache_dir}): {remedy}")


class SeveralTargetsError(AttnforgeError):
    """More than one target was tuned, and none was named."""

    def __init__(self, tuned: Iterable[str]) -> None:
        super().__init__(f"several targets were tuned: name one with --target: {', '.join(tuned)}")


@dataclass(frozen=True, slots=True)
class ReportSources:
    """All that is known of a target."""

    slug: str
    target: Target | None
    """None when only studies are left of a GPU whose arch is not known."""
    entries: tuple[TunedEntry, ...]
    """Of the user's tuned cache, sorted by spec and seqlen."""
    studies: tuple[RecordedStudy, ...]
    notices: tuple[str, ...]
    """What could not be read, for the reader."""


def read_sources(settings: Settings, wanted: str | None, storage: str | None = None) -> ReportSources:
    """What the user's folder holds of a target.

    ``wanted`` is the stem of its files (``sm_90-nvidia-h200``) or an arch; None for this machine's GPU, or else for the
    only one that was tuned. ``storage`` is the URL that its studies are at, None the user's own file. Raises
    StorageUnusableError, NothingToReportError, SeveralTargetsError, StudiesUnusableError; CacheRefused where
    there are no studies beside a refused cache.
    """
    slug = _chosen(settings, wanted)
    own = settings.studies_dir / f"{slug}.sqlite3"
    recorded = read_studies(own) if storage is None else read_shared_studies(storage, slug)
    path = settings.tuned_dir / f"{slug}.yaml"
    entries: tuple[TunedEntry, ...] = ()
    target, notices = _target(slug), []
    try:
        cache = read_users_cache(path, root=settings.cache_dir)
        entries, target = cache.entries, cache.target
    except FileNotFoundError as error:
        if not recorded.studies:
            raise NothingToReportError(wanted, [], settings) from error
        notices.append("There is no tuned cache of this target: the searches below were not finished.")
    except CacheRefused as refused:
        if not recorded.studies:
            raise
        notices.append(f"{path.name} is refused: {refused.reason}; {refused.remedy}.")
    if recorded.unread:
        notices.append(f"Left out, because their names are not the tuner's: {', '.join(recorded.unread)}.")
    ordered = tuple(sorted(entries, key=lambda e: (*place_of(e.spec), e.bucket.seqlen_q, e.bucket.name, e.created)))
    return ReportSources(slug, target, ordered, recorded.studies, tuple(notices))


def _chosen(settings: Settings, wanted: str | None) -> str:
    """The stem of the files to read."""
    files = (*settings.tuned_dir.glob("*.yaml"), *settings.studies_dir.glob("*.sqlite3"))
    tuned = sorted({path.stem for path in files})
    if wanted is None:
        candidates = tuned if len(tuned) <= 1 else [slug for slug in tuned if slug == _this_gpu()] or tuned
    else:
        candidates = [wanted] if wanted in tuned else [slug for slug in tuned if slug.split("-")[0] == wanted]
    if not candidates:
        raise NothingToReportError(wanted, tuned, settings)
    if len(candidates) > 1:
        raise SeveralTargetsError(candidates)
    return candidates[0]


def _this_gpu() -> str | None:
    try:
        return Target.current().slug
    except NoGpuError:
        return None


def _target(slug: str) -> Target | None:
    """What its arch says of a target: good enough for its default configs, until the tuned cache says more."""
    try:
        return Target.for_arch(slug.split("-")[0])
    except UnknownTargetError:
        return None

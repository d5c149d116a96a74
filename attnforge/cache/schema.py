"""What a tuned cache holds: per target, the winning config of each spec and bucket, and how it was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from attnforge.codegen import AttentionSpec, Config, Pass, Schedule, TemplateSet, Variant, schedule_of
from attnforge.problem import Bucket, Problem
from attnforge.target import Target

FORMAT = 1
"""Of the file; a reader refuses a newer one, and a writer leaves it alone."""

LAST_YEAR = 9000
"""Of a date: what takes an entry's place is dated later."""
ShortText = Annotated[str, Meta(max_length=200)]
Milliseconds = Annotated[float, Meta(gt=0, le=1e7)]


class Source(StrEnum):
    """Where an entry comes from."""

    MEASURED = "measured"
    """Timed on the target, after the accuracy gate."""
    PREDICTED = "predicted"
    """Ranked by the static model, without the target's GPU; a measured entry replaces it."""


class Toolchain(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The versions that an entry was found with."""

    triton: ShortText
    torch: ShortText
    templates: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    """TemplateSet.digest_of the schedule and pass: of all that its kernels are rendered from."""

    @staticmethod
    @cache
    def installed(schedule: Schedule, pass_: Pass) -> Toolchain:
        """What this process runs for kernels of a schedule and pass."""
        return Versions.installed().toolchain(schedule, pass_)

    def differences(self, other: Toolchain) -> tuple[str, ...]:
        """Why an entry found with this toolchain is not exact under ``other``, in words; empty when it is.

        Triton's patch releases and torch's version leave the kernels' code alone.
        """
        found = []
        if _minor(self.triton) != _minor(other.triton):
            found.append(f"triton {self.triton}, not {other.triton}")
        if self.templates != other.templates:
            found.append(f"templates {self.templates}, not {other.templates}")
        return tuple(found)


class Versions(NamedTuple):
    """What runs the kernels, of whatever schedule."""

    triton: str
    torch: str

    @staticmethod
    def installed() -> Versions:
        """In this process."""
        import torch
        import triton

        return Versions(triton.__version__, str(torch.__version__))

    def toolchain(self, schedule: Schedule, pass_: Pass) -> Toolchain:
        """These versions, with the installed templates of a schedule and pass."""
        templates = TemplateSet.installed().digest_of(schedule_of(schedule, pass_))
        return Toolchain(triton=self.triton, torch=self.torch, templates=templates)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


class Throttle(StrEnum):
    """Why a GPU runs below the clocks that it could have, as NVML tells it apart."""

    THERMAL = "thermal"
    POWER_BRAKE = "power brake"
    """The power supply asked for it."""
    HARDWARE = "hardware"
    """Either of the two, on GPUs that do not say which."""
    POWER_CAP = "power cap"
    """The board's own limit: usual under heavy load, and no fault."""


class GpuState(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a GPU was like at one moment; None where its driver does not say."""

    sm_mhz: Annotated[int, Meta(ge=0, le=10**5)] | None
    temperature_c: Annotated[int, Meta(ge=-100, le=1000)] | None
    power_w: Annotated[float, Meta(ge=0, le=1e5)] | None
    throttled: Annotated[tuple[Throttle, ...], Meta(max_length=8)] | None = ()
    other_processes: Annotated[int, Meta(ge=0, le=10**6)] | None
    """Processes computing on it that are not the tune's."""


class Conditions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the GPU was like around one worker's comparison, both times warm."""

    before: GpuState
    after: GpuState


class Provenance(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an entry has in memory as in the file."""

    problem: Problem
    """What it was measured on, or predicted for."""
    bucket: Bucket
    """The problem's bucket, for the reader's eye: the two must agree."""
    schedule: Schedule
    source: Source
    median_ms: Milliseconds | None = None
    """Of one call (forward, or all of the backward's kernels); None when predicted."""
    default_ms: Milliseconds | None = None
    """The same of the default config, in the same session; None when predicted or when the default does not run."""
    tflops: Annotated[float, Meta(gt=0, le=1e5)] | None = None
    """Useful TFLOP/s at ``median_ms``."""
    gain: Annotated[float, Meta(gt=0, le=1e4)] | None = None
    """Times faster than the default config: measured, or as the static model has it."""
    trials: Annotated[int, Meta(ge=1, le=10**9)]
    """Configs that were tried, failures included."""
    created: Annotated[datetime, Meta(tz=True)]
    toolchain: Toolchain
    conditions: Annotated[tuple[Conditions, ...], Meta(max_length=16)] | None = None
    """Around the comparison that it won, by worker; None when predicted, or when nothing could tell."""
    noise: Annotated[tuple[ShortText, ...], Meta(max_length=16)] = ()
    """What disturbed that comparison, in words: a tune compares again, and a quiet one goes before it."""

    def __post_init__(self) -> None:
        if self.bucket != Bucket.of(self.problem):
            raise ValueError(f"bucket {self.bucket.name} is not the problem's, which is {Bucket.of(self.problem).name}")
        if self.created.year > LAST_YEAR:
            raise ValueError(f"created in the year {self.created.year}")
        if (self.source is Source.MEASURED) != (self.median_ms is not None):
            raise ValueError("median_ms belongs to measured entries, and to all of them")


class Entry(Provenance, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was found for a spec on a bucket, whether or not the installed templates can render it."""

    spec: AttentionSpec

    @property
    def key(self) -> EntryKey:
        """What a cache holds at most one entry for."""
        triton_minor, templates = _minor(self.toolchain.triton), self.toolchain.templates
        return EntryKey(self.spec, self.bucket, self.schedule, triton_minor, templates)

    @property
    def differences(self) -> tuple[str, ...]:
        """Why it is not exact in this process, in words; empty when its toolchain is the installed one."""
        return self.toolchain.differences(Toolchain.installed(self.schedule, self.spec.pass_))

    @property
    def rank(self) -> tuple[bool, bool, datetime]:
        """The greater goes first: measured before predicted, quiet before noisy, then the newer."""
        return self.source is Source.MEASURED, not self.noise, self.created

    @property
    def title(self) -> str:
        """Schedule and config, for tables."""
        return f"{self.schedule}/(of other templates)"


class TunedEntry(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The winning config of a spec on a bucket, with its provenance."""

    config: Config

    @property
    def title(self) -> str:
        """Schedule and config, for tables."""
        return f"{self.schedule}/{self.config.name}"

    @property
    def variant(self) -> Variant:
        """The kernel that it names."""
        return Variant(self.spec, self.schedule, self.config)


class UnfitEntry(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of other templates, whose config the installed ones cannot have. It is kept for them, and never used."""

    config: dict[str, bool | int | str]
    """As the file has it."""
    reason: str
    """Why it cannot be used, in words."""


class EntryKey(NamedTuple):
    """Entries of different schedules and toolchains stand side by side.

    A writer never takes away what another toolchain found; of two schedules' the newer one serves (a quiet one before
    a noisy one), and the other the tensors that its schedule cannot take.
    """

    spec: AttentionSpec
    bucket: Bucket
    schedule: Schedule
    triton_minor: str
    templates: str


class TunedCache(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The entries of one target, at most one a key, fit or not."""

    target: Target
    attnforge: ShortText
    """Version that wrote it."""
    entries: tuple[TunedEntry, ...]
    unfit: tuple[UnfitEntry, ...] = ()

    def __post_init__(self) -> None:
        keys = Counter(entry.key for entry in self.all_entries)
        for key, count in keys.items():
            if count > 1:
                raise ValueError(f"{count} entries for {key.spec.name} on {key.bucket.name}")

    @classmethod
    def of(cls, target: Target, attnforge: str, entries: Iterable[Entry]) -> TunedCache:
        """The cache of entries, fit or not. Raises ValueError when two have one key."""
        entries = tuple(entries)
        fit = tuple(entry for entry in entries if isinstance(entry, TunedEntry))
        unfit = tuple(entry for entry in entries if isinstance(entry, UnfitEntry))
        return cls(target=target, attnforge=attnforge, entries=fit, unfit=unfit)

    @property
    def all_entries(self) -> tuple[Entry, ...]:
        """What its file holds."""
        return (*self.entries, *self.unfit)

    @property
    def unserved(self) -> tuple[UnfitEntry, ...]:
        """Unfit entries for whose spec and bucket no other one is there: what was tuned, and no longer counts."""
        served = {(entry.spec, entry.bucket) for entry in self.entries}
        return tuple(entry for entry in self.unfit if (entry.spec, entry.bucket) not in served)

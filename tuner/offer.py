"""Which schedules a search of a spec may choose among, and why not others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from attnforge.codegen import AttentionSpec, DType, Limits, Schedule, default_configs, schedules_of
from attnforge.tuner.search_space import SearchSpace


@dataclass(frozen=True)
class Offer:
    """The schedules of a spec for a dtype and target."""

    spaces: Mapping[Schedule, SearchSpace]
    """Of what may be tried."""
    refused: Mapping[Schedule, str]
    """Why the others may not, in words."""


def offer(
    spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool = False, wanted: Collection[Schedule] = ()
) -> Offer:
    """Every schedule that has kernels of the spec there; those of ``wanted`` alone, unless it is empty.

    Args:
        spec, dtype, limits: what is computed, on what, and on which target.
        quick: whether to leave out the choices that seldom win.
        wanted: schedules that the user named. One that has no kernels of the spec's pass at all is refused, too.
    """
    defaults = dict(default_configs(spec, dtype, limits))
    spaces: dict[Schedule, SearchSpace] = {}
    refused = dict.fromkeys(wanted, f"it has no {spec.pass_}")
    for definition in schedules_of(spec.pass_):
        schedule = definition.schedule
        if wanted and schedule not in wanted:
            refused[schedule] = "it was not asked for"
            continue
        # What runs untuned is always worth tuning, even where its default config breaks a constraint.
        reason = None if schedule in defaults else definition.refusal(spec, dtype, limits)
        if reason is None:
            refused.pop(schedule, None)
            spaces[schedule] = SearchSpace(spec, definition, dtype, limits, quick)
        else:
            refused[schedule] = reason
    return Offer(spaces, refused)

"""Puts a config together from the best parts of others: kernels are launched apart, so their times add up."""

from __future__ import annotations

from collections.abc import Mapping

from attnforge.codegen import Config, fields_of
from attnforge.codegen.schedules.base import Choice
from attnforge.tuner.search_space import SearchSpace, values_of


def recombined(space: SearchSpace, times: Mapping[Config, Mapping[str, float]]) -> Config | None:
    """The config with the least sum of its kernels' times, each kernel's fields taken from where it was fastest.

    Args:
        space: says which fields shape which kernel, and which are shared; these are the same in all parts.
        times: by config and kernel, in any unit. A kernel that is left out of a config's times is not taken from it.

    None when no choice of the shared fields has times of every kernel, or when a constraint excludes the whole.
    """
    fastest: dict[tuple[Choice, ...], dict[str, tuple[float, Config]]] = {}
    for config, kernel_times in times.items():
        kernels = fastest.setdefault(values_of(config, space.shared_fields), {})
        for kernel in space.kernels:
            if kernel in kernel_times and (kernel not in kernels or kernel_times[kernel] < kernels[kernel][0]):
                kernels[kernel] = kernel_times[kernel], config
    complete = [kernels for kernels in fastest.values() if len(kernels) == len(space.kernels)]
    if not complete:
        return None
    best = min(complete, key=lambda kernels: sum(time for time, _ in kernels.values()))
    fields = fields_of(next(iter(best.values()))[1])
    for kernel, (_, config) in best.items():
        fields |= {field: getattr(config, field) for field in space.kernels[kernel]}
    config = space.config(fields)
    return config if config in times or space.admits(config) else None

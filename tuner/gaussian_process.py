"""What configs that were not tried may take, learnt from those that were: a Gaussian process for each kernel."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from attnforge.codegen import Config
from attnforge.codegen.schedules.base import Choice
from attnforge.compilation import Failure
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace

SIMILARITIES = (0.3, 0.5, 0.7, 0.85, 0.95)
"""Of two configs that differ in one field, to choose the likeliest from."""
NOISE = 1e-3
"""Variance of a measurement, as a share of that between configs: 0.3 % where configs differ by 10 %."""
EXPECTED_SPREAD, WEIGHT = 0.1, 2.0
"""Deviation of the log times that is expected of configs, and how many of them that belief is worth: two trials that
happen to take equally long do not show that all would."""

Array = NDArray[np.float64]


class KernelProcess:
    """The log milliseconds of one kernel, over every combination of the fields that shape it.

    Configs are the more alike the fewer fields they differ in: the covariance is a product over fields (Rasmussen and
    Williams 2006, section 4.2.4; for categories as in Hutter et al. 2014), and for sizes it falls with the square root
    of the steps between them. A constant mean and the variance are estimated in closed form, the similarity is the
    likeliest of SIMILARITIES.
    """

    def __init__(self, places: NDArray[np.int64], is_size: Sequence[bool]) -> None:
        """
        Args:
            places: (combinations, fields): each field's value, by its place among the choices.
            is_size: of each field, whether its choices are ordered.
        """
        self._places = places
        self._is_size = is_size
        self._log_ms: dict[int, float] = {}

    def tell(self, combination: int, milliseconds: float) -> None:
        """The least that a combination took counts."""
        self._log_ms[combination] = min(math.log(milliseconds), self._log_ms.get(combination, math.inf))

    def predict(self, failed: Collection[int], pending: Collection[int]) -> tuple[Array, Array]:
        """Mean milliseconds and their deviation, of each combination; some must have been told.

        Args:
            failed: combinations that are taken to be as slow as the slowest told.
            pending: combinations that are being measured: what they will say is unknown, that they will is not.
        """
        known = dict.fromkeys(failed, max(self._log_ms.values())) | self._log_ms
        told = [*known, *(each for each in pending if each not in known)]
        distances = self._distances(told)
        log_ms = np.array(list(known.values()))
        fits = [_Fit(similarity, distances[:, : len(known)], list(known), log_ms) for similarity in SIMILARITIES]
        fit = max(fits, key=lambda each: each.log_likelihood)
        mean_ms = np.exp(fit.log_mean)
        return mean_ms, mean_ms * fit.deviation(distances, told)

    def _distances(self, combinations: Sequence[int]) -> Array:
        """(all combinations, those given)."""
        steps = np.abs(self._places[:, None, :] - self._places[None, combinations, :])
        distances: Array = np.where(self._is_size, np.sqrt(steps), steps > 0).sum(axis=2, dtype=np.float64)
        return distances


class _Fit:
    """The process under one similarity."""

    def __init__(self, similarity: float, distances: Array, known: Sequence[int], log_ms: Array) -> None:
        """``distances`` are those of all combinations to the known ones."""
        self._similarity = similarity
        near = self._covariance(distances)
        covariance = near[known] + NOISE * np.eye(len(known))
        inverse = np.linalg.inv(covariance)
        weights = inverse.sum(axis=0)
        constant = weights @ log_ms / weights.sum()
        residuals = log_ms - constant
        coefficients = inverse @ residuals
        self._variance = float(residuals @ coefficients + WEIGHT * EXPECTED_SPREAD**2) / (len(known) + WEIGHT)
        self.log_likelihood = -0.5 * (len(known) * math.log(self._variance) + np.linalg.slogdet(covariance)[1])
        self.log_mean = constant + near @ coefficients

    def deviation(self, distances: Array, told: Sequence[int]) -> Array:
        """Of the log times, when all of ``told`` are known; ``distances`` are those to them."""
        near = self._covariance(distances)
        inverse = np.linalg.inv(near[told] + NOISE * np.eye(len(told)))
        unexplained: Array = np.maximum(1e-9, 1 - np.einsum("ij,jk,ik->i", near, inverse, near))
        return np.sqrt(self._variance * unexplained)

    def _covariance(self, distances: Array) -> Array:
        covariance: Array = self._similarity**distances
        return covariance


class SpaceProcess:
    """The milliseconds of every config of a space: its kernels run one after another, so their times add up."""

    def __init__(self, space: SearchSpace) -> None:
        self.configs = space.configs
        self._places = {config: place for place, config in enumerate(self.configs)}
        self._kernels: dict[str, KernelProcess] = {}
        self._combinations: dict[str, NDArray[np.int64]] = {}
        for kernel, own_fields in space.kernels.items():
            fields = {field: space.choices[field] for field in (*space.shared_fields, *own_fields)}
            all_places = np.array([_places(config, fields) for config in self.configs])
            places, self._combinations[kernel] = np.unique(all_places, axis=0, return_inverse=True)
            is_size = [all(type(choice) is int for choice in choices) for choices in fields.values()]
            self._kernels[kernel] = KernelProcess(places, is_size)
        self._told: set[int] = set()
        self._failed: set[int] = set()
        self._others_ms = math.inf
        """Of the kernels that no field shapes."""

    def __contains__(self, config: Config) -> bool:
        return config in self._places

    @property
    def has_times(self) -> bool:
        """Whether any config ran."""
        return len(self._told) > len(self._failed)

    def tell(self, config: Config, outcome: Measurement | Failure) -> None:
        """Learn what came of a config; nothing from one that the space does not have."""
        place = self._places.get(config)
        if place is None:
            return
        self._told.add(place)
        if isinstance(outcome, Failure):
            self._failed.add(place)
            return
        for kernel, process in self._kernels.items():
            process.tell(int(self._combinations[kernel][place]), outcome.kernel_ms[kernel])
        others_ms = sum(ms for kernel, ms in outcome.kernel_ms.items() if kernel not in self._kernels)
        self._others_ms = min(others_ms, self._others_ms)

    def expected_improvement(self, best_ms: float, known: Collection[Config]) -> Array:
        """By how many milliseconds each config is expected to be faster than ``best_ms``, where it is faster at all
        (Jones, Schonlau and Welch 1998, equation 15); -1 for those of ``known``. Some config must have run.
        """
        places = {self._places[config] for config in known}
        mean, variance = np.full(len(self.configs), self._others_ms, dtype=np.float64), np.zeros(len(self.configs))
        for kernel, process in self._kernels.items():
            combinations = self._combinations[kernel]
            failed = {int(combinations[place]) for place in self._failed}
            pending = {int(combinations[place]) for place in places - self._told}
            kernel_mean, deviation = process.predict(failed, pending)
            mean += kernel_mean[combinations]
            variance += deviation[combinations] ** 2
        deviation = np.sqrt(variance)
        better = (best_ms - mean) / deviation
        below = 0.5 * (1 + np.vectorize(math.erf)(better / math.sqrt(2)))
        density = np.exp(-(better**2) / 2) / math.sqrt(2 * math.pi)
        improvement = deviation * (better * below + density)
        improvement[list(places)] = -1.0
        return np.asarray(improvement)


def _places(config: Config, fields: Mapping[str, tuple[Choice, ...]]) -> list[int]:
    return [choices.index(getattr(config, field)) for field, choices in fields.items()]

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, default_config, schedule_of
from attnforge.compilation import Failure, FailureKind
from attnforge.tuner.gaussian_process import KernelProcess, SpaceProcess
from attnforge.tuner.measurement import Measurement
from attnforge.tuner.search_space import SearchSpace
from tests.tuner.fake_device import TARGET

REFUSED = Failure(FailureKind.COMPILE, "refused")
PLACES = np.array(list(product(range(4), range(3), range(2))))
"""Of a size of four choices, and two fields of three and two."""


def milliseconds(places: tuple[int, ...]) -> float:
    """Each field has its part in it, and they have nothing to do with each other."""
    size, second, third = places
    return math.exp(0.1 * abs(size - 2) + (0.0, 0.3, 0.1)[second] + 0.2 * third)


def process_of(*told: int) -> KernelProcess:
    process = KernelProcess(PLACES, [True, False, False])
    for combination in told:
        process.tell(combination, milliseconds(PLACES[combination]))
    return process


def test_what_was_told_is_known_and_the_rest_is_less_certain() -> None:
    told = [0, 5, 11, 20]
    mean, deviation = process_of(*told).predict((), ())
    for combination in told:
        assert mean[combination] == pytest.approx(milliseconds(PLACES[combination]), rel=0.02)
    others = [each for each in range(len(PLACES)) if each not in told]
    assert deviation[told].max() < 0.5 * deviation[others].min()


def test_what_fields_do_alone_tells_what_they_do_together() -> None:
    base = [index for index, places in enumerate(PLACES) if (places != 0).sum() <= 1]
    unseen = [index for index in range(len(PLACES)) if index not in base]
    truth = np.array([milliseconds(PLACES[index]) for index in unseen])

    def correlation(told: Sequence[int]) -> float:
        """Between what is predicted of the unseen and what they take, when ``told`` stand for ``base``."""
        process = KernelProcess(PLACES, [True, False, False])
        for combination, other in zip(base, told, strict=True):
            process.tell(combination, milliseconds(PLACES[other]))
        return float(np.corrcoef(process.predict((), ())[0][unseen], truth)[0, 1])

    assert correlation(base) > 0.8
    assert correlation(base[::-1]) < 0.5, "the wrong times teach nothing"


def test_sizes_are_the_more_alike_the_fewer_steps_they_are_apart() -> None:
    process = KernelProcess(np.arange(6)[:, None], [True])
    for combination, ms in ((0, 1.0), (5, 2.0)):
        process.tell(combination, ms)
    mean, _ = process.predict((), ())
    assert list(mean) == sorted(mean)
    assert mean[1] < mean[4]


def test_what_is_pending_lowers_the_doubt_but_not_the_expectation() -> None:
    process = process_of(0, 5, 11)
    mean, deviation = process.predict((), ())
    same_mean, less = process.predict((), [20])
    assert same_mean == pytest.approx(mean)
    assert less[20] < 0.2 * deviation[20]
    assert (less <= deviation + 1e-12).all()


def test_what_failed_counts_as_slow_as_the_slowest_unless_it_ran_elsewhere() -> None:
    process = process_of(0, 5)
    mean, _ = process.predict([20], ())
    assert mean[20] == pytest.approx(max(milliseconds(PLACES[each]) for each in (0, 5)), rel=0.02)
    process.tell(20, 0.5)  # in a config whose other kernel ran as well
    assert process.predict([20], ())[0][20] == pytest.approx(0.5, rel=0.02)


def space_of(pass_: Pass) -> SearchSpace:
    spec = AttentionSpec(pass_=pass_, head_dim=64, head_dim_v=64, causal=False)
    return SearchSpace(spec, schedule_of(Schedule.PORTABLE, pass_), DType.BF16, TARGET.limits, quick=True)


def test_the_kernels_of_a_config_add_up_and_each_is_learnt_from_every_config() -> None:
    space = space_of(Pass.BACKWARD)
    process = SpaceProcess(space)
    first, other = space.configs[0], space.configs[-1]
    process.tell(first, Measurement({"delta": 0.1, "dkdv": 1.0, "dq": 3.0}, runs=1))
    process.tell(other, Measurement({"delta": 0.1, "dkdv": 2.0, "dq": 1.0}, runs=1))
    improvement = process.expected_improvement(3.1, [first, other])
    best = process.configs[int(np.argmax(improvement))]
    assert all(getattr(best, field) == getattr(first, field) for field in space.kernels["dkdv"])
    assert all(getattr(best, field) == getattr(other, field) for field in space.kernels["dq"])
    assert improvement.max() == pytest.approx(3.1 - 2.1, rel=0.2)


def test_what_is_known_promises_nothing_and_what_the_space_has_not_is_passed_over() -> None:
    space = space_of(Pass.FORWARD)
    process = SpaceProcess(space)
    outside = default_config(space.spec, DType.FP32, space.limits)[1]
    assert outside not in process
    process.tell(outside, Measurement({"forward": 0.001}, runs=1))
    process.tell(space.configs[0], REFUSED)
    assert not process.has_times
    process.tell(space.configs[1], Measurement({"forward": 1.0}, runs=1))
    assert process.has_times
    improvement = process.expected_improvement(1.0, space.configs[:3])
    assert (improvement[:3] == -1).all()
    assert (improvement[3:] >= 0).all()

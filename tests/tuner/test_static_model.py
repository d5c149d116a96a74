from dataclasses import replace

import msgspec
import pytest

from attnforge.codegen import AttentionSpec, Config, DType, HeadDimSplit, Pass, Schedule, default_config, schedule_of
from attnforge.compilation import KernelReport
from attnforge.target import Target
from attnforge.tuner.static_model import predict
from attnforge.tuner.task import self_attention

SM_90 = Target.for_arch("sm_90")


def spec_of(pass_: Pass, head_dim: int = 80, causal: bool = False) -> AttentionSpec:
    return AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)


def default_of(spec: AttentionSpec) -> Config:
    return schedule_of(Schedule.PORTABLE, spec.pass_).default(spec, DType.BF16, SM_90.limits)


def cycles(spec: AttentionSpec, config: Config, report: KernelReport | None = None, seqlen: int = 4096) -> float:
    problem = self_attention(spec.head_dim, seqlen, DType.BF16)
    reported = {} if report is None else dict.fromkeys(("forward", "dkdv", "dq"), report)
    return sum(predict(spec, config, problem, SM_90, reported).values())


@pytest.mark.parametrize("pass_", list(Pass))
def test_it_tells_apart_the_kernels_that_config_fields_shape(pass_: Pass) -> None:
    spec = spec_of(pass_)
    predicted = predict(spec, default_of(spec), self_attention(80, 1024, DType.BF16), SM_90)
    assert list(predicted) == (["forward"] if pass_ is Pass.FORWARD else ["dkdv", "dq"])
    assert all(value > 0 for value in predicted.values())


@pytest.mark.parametrize("pass_", list(Pass))
def test_what_costs_more_takes_longer(pass_: Pass) -> None:
    spec = spec_of(pass_)
    config = default_of(spec)
    assert cycles(spec_of(pass_, causal=True), config) < 0.8 * cycles(spec, config)
    assert cycles(spec, config, seqlen=1024) < cycles(spec, config) < cycles(spec, config, seqlen=16384)
    padded = replace(config, head_dim_split=HeadDimSplit.PADDED)
    assert cycles(spec, config) < cycles(spec, padded), "80 as 128 columns"
    lean = KernelReport("any", 60_000, 128, 0, ())
    assert cycles(spec, config, lean) < cycles(spec, config, replace_report(lean, spill_bytes=400))
    assert cycles(spec, config, lean) < cycles(spec, config, replace_report(lean, shared_bytes=200_000))


def replace_report(report: KernelReport, **changes: int) -> KernelReport:

    return msgspec.structs.replace(report, **changes)


@pytest.mark.parametrize("arch", ["sm_80", "sm_120", "gfx942"])
def test_every_target_gets_an_order(arch: str) -> None:
    target = Target.for_arch(arch)
    spec = spec_of(Pass.BACKWARD, 128)
    config = default_config(spec, DType.BF16, target.limits)[1]
    assert sum(predict(spec, config, self_attention(128, 4096, DType.BF16), target).values()) > 0

"""Variants of the hopper schedule's backward, and their modules' own text, run on the CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from attnforge import reference
from attnforge.codegen import (
    AttentionSpec,
    DType,
    HopperBackwardConfig,
    Limits,
    Pass,
    Schedule,
    Variant,
    render,
    schedule_of,
)
from attnforge.tuner.accuracy import check, gate_cases, prepare
from tests.codegen.gluon_pieces import ProtocolError
from tests.codegen.gluon_simulator import Machine

SM_90 = Limits("sm_90", 232448)
HOPPER = schedule_of(Schedule.HOPPER, Pass.BACKWARD)
CONFIG = HopperBackwardConfig(block_m=64, stages=2, ping_pong=True, kv_in_registers=False, ordered=False)
WIDE_CONFIG = replace(CONFIG, ping_pong=False)
SCALE = 0.3
SEQLENS = [(1, 1), (64, 128), (200, 300), (300, 65), (130, 1), (257, 400)]
"""(seqlen_q, seqlen_k): tails, one block, and causal rows that see no key."""


def a_spec(head_dim: int, causal: bool = True, head_dim_v: int | None = None) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.BACKWARD, head_dim=head_dim, head_dim_v=head_dim_v or head_dim, causal=causal)


def a_default(spec: AttentionSpec, **changed: Any) -> Variant:
    """The default, with some fields changed."""
    return Variant(spec, Schedule.HOPPER, replace(HOPPER.default(spec, DType.BF16, SM_90), **changed))


def text_of(spec: AttentionSpec, config: HopperBackwardConfig = CONFIG, **changed: Any) -> str:
    """The module of a config with some fields changed."""
    return render(Variant(spec, Schedule.HOPPER, replace(config, **changed)))


@dataclass(frozen=True)
class Call:
    """What a backward is called with."""

    spec: AttentionSpec
    dout: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor

    @staticmethod
    def of(
        spec: AttentionSpec, seqlens: tuple[int, int], heads: int = 2, kv_heads: int = 1, seed: int = 0,
        expanded: bool = False,
    ) -> Call:  # fmt: skip
        """Random numbers, for a batch of 2."""
        torch.manual_seed(seed)
        seqlen_q, seqlen_k = seqlens
        q = torch.randn(2, heads, seqlen_q, spec.head_dim).half()
        k, v, dout = (  # (B, S, H, D) in memory
            torch.randn(2, rows, count, width).half().transpose(1, 2)
            for rows, count, width in (
                (seqlen_k, kv_heads, spec.head_dim),
                (seqlen_k, kv_heads, spec.head_dim_v),
                (seqlen_q, heads, spec.head_dim_v),
            )
        )
        if expanded:
            q, k, v, dout = (
                q[:1].expand(2, -1, -1, -1),
                k[:, :1].expand(-1, kv_heads, -1, -1),
                v[:1, :1].expand(2, kv_heads, -1, -1),
                dout[:, :1].expand(-1, heads, -1, -1),
            )
        out, lse = reference.attention(q, k, v, causal=spec.causal, softmax_scale=SCALE)
        return Call(spec, dout, q, k, v, out.half(), lse.float())

    def simulate(self, text: str, seed: int = 0, resident: int = 1) -> tuple[list[torch.Tensor], torch.Tensor]:
        """dq, dk and dv, and the workspace with dq's sums, flat, with so many programs at a time."""
        gradients = [torch.full(tensor.shape, torch.nan).half() for tensor in (self.q, self.k, self.v)]
        tensors = (self.dout, self.q, self.k, self.v, self.out, self.lse, *gradients)
        workspace = launch(text, *tensors, SCALE, machine=Machine(seed, resident))
        return gradients, workspace.nan_to_num()

    def error(self, gradients: list[torch.Tensor]) -> float:
        """The largest error of dq, dk and dv, as a part of what is allowed; infinite where one of them is NaN."""
        expected = reference.attention_backward(
            self.dout, self.q, self.k, self.v, causal=self.spec.causal, softmax_scale=SCALE, out=self.out
        )
        errors = [
            (got - want).abs() / (4e-3 + 4e-3 * want.abs()) for got, want in zip(gradients, expected, strict=True)
        ]
        return max(float(error.nan_to_num(torch.inf).max()) for error in errors)


def launch(text: str, *arguments: Any, machine: Machine | None = None) -> torch.Tensor:
    """Run a module as its launch() would. Returns the workspace, flat."""
    machine = machine or Machine(0)
    module = machine.module(text)
    workspace = torch.full(module.workspace_shape(arguments[1]), torch.nan)
    for kernel, grid, tensors, scalars, _ in module.plan(*arguments[:-1], workspace, arguments[-1]):
        machine.launch(kernel, grid[0], *tensors, *scalars)
    return workspace.view(-1)


def run(
    text: str, spec: AttentionSpec, seqlens: tuple[int, int], heads: int = 2, kv_heads: int = 1, seed: int = 0,
    expanded: bool = False, resident: int = 1,
) -> float:  # fmt: skip
    """The largest error of a call, see Call.error()."""
    call = Call.of(spec, seqlens, heads, kv_heads, seed, expanded)
    return call.error(call.simulate(text, seed, resident)[0])


def gate_failures(text: str, spec: AttentionSpec) -> list[object]:
    """What the tuner's accuracy gate has against a module."""

    def call(*arguments: Any) -> None:
        launch(text, *arguments)

    reports = [check(call, prepare(case, torch.device("cpu"))) for case in gate_cases(spec, DType.FP16, tile=128)]
    return [report.failure for report in reports if report.failure is not None]


def edited(text: str, edits: Mapping[str, str]) -> str:
    """A module's text with each pattern replaced. All of them must be found."""
    for before, after in edits.items():
        text, count = re.subn(before, after, text)
        assert count, before
    return text


def is_noticed(text: str, spec: AttentionSpec, allowed: float, seeds: int = 4) -> bool:
    """Whether a faulty module breaks a rule, hangs or computes something else: with blocks that keys do not fill."""
    try:
        return any(
            run(text, spec, (300, 65) if seed == 1 else (300, 400), heads=4, kv_heads=2, seed=seed) >= allowed
            for seed in range(seeds)
        )
    except ProtocolError:
        return True


def orders_of_sums(text: str, spec: AttentionSpec, resident: int, seeds: int = 3) -> int:
    """How many different sums of dq come from one call, run in as many interleavings of programs."""
    call = Call.of(spec, (200, 500), heads=4, kv_heads=2)
    sums = [call.simulate(text, seed, resident)[1] for seed in range(seeds)]
    return sum(all(not torch.equal(each, other) for other in sums[:index]) for index, each in enumerate(sums))

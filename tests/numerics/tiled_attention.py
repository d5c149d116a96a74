"""FlashAttention's tiles in plain torch, rounding where kernels round, with faults to seed: the rules are tried on it.

It needs neither Triton nor its interpreter, and works in bf16, which the interpreter cannot multiply.
"""

from __future__ import annotations

from enum import StrEnum

import torch

from attnforge.codegen import Pass
from attnforge.tuner.accuracy_inputs import Case

BLOCK = 32


class Fault(StrEnum):
    """What is wrong with a launch."""

    NONE = "none"
    SCALE = "scores 1 % too large"
    MISSING_KEY = "the denominator misses a key"
    LAST_RESCALE = "the last rescale is missing"
    LAST_BLOCK = "the last block is skipped"
    MASK_TOO_WIDE = "the mask lets one more key in"
    MASK_TOO_NARROW = "the mask leaves one key out"
    NO_MAXIMUM = "no maximum is subtracted"
    MASK_BY_PRODUCT = "masked probabilities are multiplied by 0"
    LSE_BASE_2 = "the LSE is in units of log2"
    UNSEEING_MEAN = "rows that see no key average all values"
    UNWRITTEN_ROW = "the last row is not written"
    WRITES_PAST_END = "one row too many is written"
    OUT_SCALE = "out 1 % too large"
    SHIFTED_VALUES = "values are read one row late"
    NO_DELTA = "delta is missing"
    NO_SCALE_ON_DK = "dk is not scaled"
    NO_GROUP_SUM = "dk and dv come from one head of the group"
    DV_SCALE = "dv 1 % too large"
    DQ_MISSES_KEY = "dq misses the last key"
    TF32 = "q is rounded to tf32"


FORWARD_FAULTS = tuple(Fault)[: list(Fault).index(Fault.NO_DELTA)]
BACKWARD_FAULTS = (
    Fault.NONE, Fault.SCALE, Fault.LAST_BLOCK, Fault.MASK_TOO_WIDE, Fault.MASK_TOO_NARROW, Fault.UNWRITTEN_ROW,
    Fault.NO_DELTA, Fault.NO_SCALE_ON_DK, Fault.NO_GROUP_SUM, Fault.DV_SCALE,
    Fault.DQ_MISSES_KEY,
)  # fmt: skip


class TiledAttention:
    """A launch for ``check``: the forward or backward of a case, with one fault."""

    def __init__(self, case: Case, fault: Fault = Fault.NONE) -> None:
        self.causal = case.spec.causal
        self.forward = case.spec.pass_ is Pass.FORWARD
        self.fault = fault

    def __call__(self, *arguments) -> None:
        (self._forward if self.forward else self._backward)(*arguments)

    def _scores(self, q, k, softmax_scale):
        scale = softmax_scale * (1.01 if self.fault is Fault.SCALE else 1.0)
        q = q.float()
        if self.fault is Fault.TF32:
            q = (q.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
        scores = q @ k.float().mT * scale
        if self.causal:
            shift = {Fault.MASK_TOO_WIDE: 1, Fault.MASK_TOO_NARROW: -1}.get(self.fault, 0)
            last_key = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2] + shift
            hidden = torch.arange(k.shape[2]) > last_key
            if self.fault is Fault.MASK_BY_PRODUCT:
                return scores - 1e30 * hidden
            scores = scores.masked_fill(hidden, float("-inf"))
        return scores

    def _forward(self, q, k, v, out, lse, softmax_scale):
        fault, group = self.fault, q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        if fault is Fault.SHIFTED_VALUES:
            v = v.roll(1, 2)
        scores = self._scores(q, k, softmax_scale)
        maximum = torch.full(q.shape[:3], -1e30)
        total = torch.zeros(q.shape[:3])
        acc = torch.zeros(*q.shape[:3], v.shape[-1])
        starts = list(range(0, k.shape[2], BLOCK))
        for start in starts[: -1 if fault is Fault.LAST_BLOCK else None]:
            block = scores[..., start : start + BLOCK]
            following = maximum if fault is Fault.NO_MAXIMUM else torch.maximum(maximum, block.amax(-1))
            if fault is Fault.NO_MAXIMUM:
                maximum = following = torch.zeros_like(maximum)
            p = torch.exp(block - following[..., None])
            rescale = torch.exp(maximum - following)
            total = total * rescale + p.sum(-1)
            if fault is Fault.MISSING_KEY and start == 0:
                total = total - p[..., 3]
            if not (fault is Fault.LAST_RESCALE and start == starts[-1]):
                acc = acc * rescale[..., None]
            acc = acc + p.to(q.dtype).float() @ v[:, :, start : start + BLOCK].float()
            maximum = following
        seeing = total != 0
        result = acc / torch.where(seeing, total, 1.0)[..., None]
        if fault is Fault.UNSEEING_MEAN:
            result = torch.where(seeing[..., None], result, v.float().mean(2, keepdim=True))
        result = result * (1.01 if fault is Fault.OUT_SCALE else 1.0)
        rows = slice(0, -1 if fault is Fault.UNWRITTEN_ROW else None)
        out[:, :, rows] = result.to(q.dtype)[:, :, rows]
        lse.copy_((maximum + total.log()) * (1.4427 if fault is Fault.LSE_BASE_2 else 1.0))
        if fault is Fault.WRITES_PAST_END:
            out.as_strided((1,), (1,), out.storage_offset() + out.numel()).zero_()

    def _backward(self, dout, q, k, v, out, lse, dq, dk, dv, softmax_scale):
        fault, group = self.fault, q.shape[1] // k.shape[1]
        keys, values = (x.repeat_interleave(group, 1).float() for x in (k, v))
        exponent = self._scores(q, keys, softmax_scale) - lse.masked_fill(lse.isneginf(), float("inf"))[..., None]
        p = torch.exp(exponent)
        if fault is Fault.LAST_BLOCK:
            p[..., (k.shape[2] - 1) // BLOCK * BLOCK :] = 0
        delta = (out.float() * dout.float()).sum(-1, keepdim=True) * (fault is not Fault.NO_DELTA)
        ds = (p * (dout.float() @ values.mT - delta)).to(q.dtype).float()
        rows = slice(0, -1 if fault is Fault.UNWRITTEN_ROW else None)
        seen = slice(0, -1 if fault is Fault.DQ_MISSES_KEY else None)
        dq[:, :, rows] = (ds[..., seen] @ keys[:, :, seen] * softmax_scale).to(q.dtype)[:, :, rows]

        def grouped(gradient):
            members = gradient.unflatten(1, (k.shape[1], group))
            return members[:, :, 0] if fault is Fault.NO_GROUP_SUM else members.sum(2)

        dk.copy_(grouped(ds.mT @ q.float()) * (1.0 if fault is Fault.NO_SCALE_ON_DK else softmax_scale))
        dv.copy_(grouped(p.to(q.dtype).float().mT @ dout.float()) * (1.01 if fault is Fault.DV_SCALE else 1.0))

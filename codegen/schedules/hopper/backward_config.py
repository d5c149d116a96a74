"""The tunables of the hopper schedule's backward."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from attnforge.codegen.schedules.base import check_bool, check_enum, check_power_of_two, check_range

FIELDS = (
    "block_m", "stages", "dq_order", "stats_by_tma", "k_in_registers", "v_in_registers", "early_dv", "anchor"
)  # fmt: skip


class DqOrder(StrEnum):
    """When a warpgroup multiplies its share of a block's dq, for which it needs ds of both."""

    SAME_STEP = "same"
    """Behind dv and dk: it waits for the other's ds under their matrix work."""
    NEXT_STEP = "next"
    """In the next step, behind scores and dp: the softmax runs beside dp and dq, ds beside dv."""
    BEFORE_DP = "beforedp"
    """In the next step, behind the scores and before dp: it needs fewer registers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopperBackwardConfig:
    """Tunables of the warp-specialised backward kernel: two warpgroups of 64 keys each, fed by TMA."""

    block_m: int
    """Queries of one step: 64, of whose dq each warpgroup makes half of the columns, or 128, and half of the rows."""
    stages: int
    """Buffers of q and as many of dout."""
    dq_order: DqOrder
    """When dq is multiplied."""
    stats_by_tma: bool
    """Fetch delta and the LSE by TMA beside q and dout; else each thread loads them from global memory."""
    k_in_registers: bool
    """Keep K in registers as the operand of the scores: it is then read from shared memory for dq alone."""
    v_in_registers: bool
    """Keep V in registers as the operand of dp."""
    early_dv: bool
    """Multiply dv as soon as p is there, beside which ds is computed; else with dk, which needs fewer registers."""
    anchor: bool
    """Keep ptxas from waiting for dp or dq before the softmax (see the template's ``anchor``); an early dv does too."""

    def __post_init__(self) -> None:
        check_power_of_two("block_m", self.block_m, 64, 128)
        check_range("stages", self.stages, 1, 6)
        check_enum("dq_order", self.dq_order, DqOrder)
        for field in FIELDS[3:]:
            check_bool(field, getattr(self, field))

    @property
    def name(self) -> str:
        """Such as ``m64_s2_next_stats``."""
        flags = {
            "stats": self.stats_by_tma,
            "kreg": self.k_in_registers,
            "vreg": self.v_in_registers,
            "earlydv": self.early_dv,
            "anchor": self.anchor,
        }
        return "_".join(
            (f"m{self.block_m}", f"s{self.stages}", self.dq_order, *(flag for flag, is_set in flags.items() if is_set))
        )

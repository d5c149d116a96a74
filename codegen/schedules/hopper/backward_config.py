"""The tunables of the hopper schedule's backward."""

from __future__ import annotations

from dataclasses import dataclass

from attnforge.codegen.schedules.base import check_bool, check_power_of_two, check_range

FIELDS = ("block_m", "stages", "ping_pong", "kv_in_registers", "ordered")


@dataclass(frozen=True, slots=True, kw_only=True)
class HopperBackwardConfig:
    """Tunables of the warp-specialised backward kernel: two warpgroups, fed by TMA."""

    block_m: int
    """Queries of one step: 64, of whose dq each warpgroup makes half of the columns, or 128, and half of the rows."""
    stages: int
    """Buffers of q and as many of dout."""
    ping_pong: bool
    """Warpgroups take turns at the tensor cores, so that one computes while the other multiplies."""
    kv_in_registers: bool
    """Keep K and V in registers as operands of the scores and of dp: K is then read from shared memory for dq alone."""
    ordered: bool
    """Add to dq in a fixed order, in which programs wait for one another: dq repeats bitwise."""

    def __post_init__(self) -> None:
        check_power_of_two("block_m", self.block_m, 64, 128)
        check_range("stages", self.stages, 2, 4)
        for field in FIELDS[2:]:
            check_bool(field, getattr(self, field))

    @property
    def name(self) -> str:
        """Such as ``m64_s2_pingpong``."""
        flags = {"pingpong": self.ping_pong, "kvreg": self.kv_in_registers, "ordered": self.ordered}
        return "_".join((f"m{self.block_m}", f"s{self.stages}", *(flag for flag, is_set in flags.items() if is_set)))

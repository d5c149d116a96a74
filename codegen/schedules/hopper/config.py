"""The tunables of the hopper schedule."""

from __future__ import annotations

from dataclasses import dataclass

from attnforge.codegen.head_dims import HeadDimSplit
from attnforge.codegen.schedules.base import check_bool, check_enum, check_power_of_two, check_range

NUMBERS = ("warpgroups", "block_n", "stages", "q_stages", "heads_together")
FIELDS = (*NUMBERS, "ping_pong", "overlap", "anchor", "persistent")


@dataclass(frozen=True, slots=True, kw_only=True)
class HopperForwardConfig:
    """Tunables of the warp-specialised forward kernel: a producer warp feeds warpgroups that multiply."""

    warpgroups: int
    """Consumers, of 64 query rows each."""
    block_n: int
    """Keys of one step."""
    stages: int
    """Buffers of K and as many of V."""
    q_stages: int
    """Buffers of Q, which the output leaves through. With 2 a persistent program fetches Q a tile ahead."""
    ping_pong: bool
    """Have the consumers issue their matrix work in turns, so that one's softmax runs beside the others'."""
    overlap: bool
    """Have each consumer run its softmax beside its own P V of the block before."""
    anchor: bool
    """Keep ptxas from waiting for that P V before the softmax (see the template's ``anchor``)."""
    persistent: bool
    """One program for each SM, which walks over tiles, instead of one for each tile."""
    heads_together: int
    """Heads whose tiles alternate, where causal: of all of them the tiles with the most keys go first. A persistent
    program with 1 takes pairs of tiles of a head that cost the same, which balances as well where heads are few."""
    head_dim_split: HeadDimSplit
    """Chunks or padding for head dims that are not powers of two."""

    def __post_init__(self) -> None:
        check_range("warpgroups", self.warpgroups, 2, 4)
        check_power_of_two("block_n", self.block_n, 32, 256)
        check_range("stages", self.stages, 1, 6)
        check_range("q_stages", self.q_stages, 1, 2)
        check_range("heads_together", self.heads_together, 1, 128)
        for field in ("ping_pong", "overlap", "anchor", "persistent"):
            check_bool(field, getattr(self, field))
        check_enum("head_dim_split", self.head_dim_split, HeadDimSplit)

    @property
    def name(self) -> str:
        """Such as ``w2_n128_s2_q1_h1_pingpong_overlap_anchor_chunks``."""
        flags = {
            "pingpong": self.ping_pong,
            "overlap": self.overlap,
            "anchor": self.anchor,
            "persistent": self.persistent,
        }
        numbers = zip("wnsqh", (getattr(self, field) for field in NUMBERS), strict=True)
        return "_".join(
            (
                *(f"{letter}{number}" for letter, number in numbers),
                *(flag for flag, is_set in flags.items() if is_set),
                self.head_dim_split,
            )
        )

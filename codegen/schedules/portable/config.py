"""The tunables of the portable schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from attnforge.codegen.head_dims import HeadDimSplit
from attnforge.codegen.schedules.base import Config, check_bool, check_enum, check_power_of_two, check_range

TILE_FIELDS = ("block_m", "block_n", "num_warps", "num_stages")
DKDV_FIELDS = (*(f"dkdv_{field}" for field in TILE_FIELDS), "dkdv_pin_accumulators")
DQ_FIELDS = tuple(f"dq_{field}" for field in TILE_FIELDS)


class Tile(NamedTuple):
    """The tunables that every kernel has."""

    block_m: int
    """Query rows of one program, or of one step of a loop over queries."""
    block_n: int
    """Keys of one step of a loop over keys, or of one program."""
    num_warps: int
    """Warps of one program; 8 make two warpgroups on Hopper."""
    num_stages: int
    """Depth of the load pipeline."""

    @property
    def name(self) -> str:
        """Such as ``m128_n64_w8_s3``."""
        return f"m{self.block_m}_n{self.block_n}_w{self.num_warps}_s{self.num_stages}"


def tile_of(config: Config, prefix: str) -> Tile:
    """The tile of the kernel whose fields start with ``prefix``: empty (forward), ``dkdv_`` or ``dq_``."""
    return Tile(*(getattr(config, prefix + field) for field in TILE_FIELDS))


def _check_tile(config: Config, prefix: str) -> None:
    tile = tile_of(config, prefix)
    check_power_of_two(f"{prefix}block_m", tile.block_m, 16, 256)
    check_power_of_two(f"{prefix}block_n", tile.block_n, 16, 256)
    check_power_of_two(f"{prefix}num_warps", tile.num_warps, 1, 16)
    check_range(f"{prefix}num_stages", tile.num_stages, 1, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableForwardConfig:
    """Tunables of the portable forward kernel: one program walks over the keys of a block of queries."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    head_dim_split: HeadDimSplit
    """Chunks or padding for head dims that are not powers of two."""

    def __post_init__(self) -> None:
        _check_tile(self, "")
        check_enum("head_dim_split", self.head_dim_split, HeadDimSplit)

    @property
    def name(self) -> str:
        """Such as ``m128_n64_w8_s3_chunks``."""
        return f"{tile_of(self, '').name}_{self.head_dim_split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableBackwardConfig:
    """Tunables of the portable backward: a dK/dV kernel (one program a key block), a dQ kernel (one a query block)."""

    dkdv_block_m: int
    dkdv_block_n: int
    dkdv_num_warps: int
    dkdv_num_stages: int
    dkdv_pin_accumulators: bool
    """Keep dK's and dV's wgmma from being in flight across steps (Hopper only; see the template's ``pin``)."""
    dq_block_m: int
    dq_block_n: int
    dq_num_warps: int
    dq_num_stages: int
    head_dim_split: HeadDimSplit
    """Chunks or padding for head dims that are not powers of two."""

    def __post_init__(self) -> None:
        _check_tile(self, "dkdv_")
        _check_tile(self, "dq_")
        check_bool("dkdv_pin_accumulators", self.dkdv_pin_accumulators)
        check_enum("head_dim_split", self.head_dim_split, HeadDimSplit)

    @property
    def name(self) -> str:
        """Such as ``dkdv_m64_n128_w8_s3_pin_dq_m128_n64_w8_s3_chunks``."""
        pin = "_pin" if self.dkdv_pin_accumulators else ""
        return f"dkdv_{tile_of(self, 'dkdv_').name}{pin}_dq_{tile_of(self, 'dq_').name}_{self.head_dim_split}"


def prefixes_of(config: Config) -> tuple[str, ...]:
    """The prefixes of the fields of a config's kernels."""
    return ("dkdv_", "dq_") if isinstance(config, PortableBackwardConfig) else ("",)


def split_of(config: Config) -> HeadDimSplit:
    """How a config lays out head dims that are not powers of two."""
    assert isinstance(config, PortableForwardConfig | PortableBackwardConfig)
    return config.head_dim_split

"""The portable schedule: tl.load + tl.dot, for every GPU that Triton knows, and for its interpreter."""

from __future__ import annotations

from dataclasses import dataclass

from attnforge.codegen.head_dims import HeadDimSplit, best_split, is_split_a_choice, split_head_dim
from attnforge.codegen.schedules.base import (
    Choice,
    Config,
    Constraint,
    Context,
    Limits,
    Schedule,
    ScheduleDefinition,
    check_bool,
    check_enum,
    check_power_of_two,
    check_range,
)
from attnforge.codegen.spec import AttentionSpec, DType, Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableForwardConfig:
    """Tunables of the portable forward kernel."""

    block_m: int
    """Query rows of one program."""
    block_n: int
    """Keys of one step of its loop."""
    num_warps: int
    """Warps of one program; 8 make two warpgroups on Hopper."""
    num_stages: int
    """Depth of the K/V load pipeline."""
    head_dim_split: HeadDimSplit
    """Chunks or padding for head dims that are not powers of two."""

    def __post_init__(self) -> None:
        _check_tile("", self)
        check_enum("head_dim_split", self.head_dim_split, HeadDimSplit)

    @property
    def name(self) -> str:
        """Such as ``m128_n64_w8_s3_chunks``."""
        return f"{_tile_name('', self)}_{self.head_dim_split}"


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

    def __post_init__(self) -> None:
        _check_tile("dkdv_", self)
        _check_tile("dq_", self)
        check_bool("dkdv_pin_accumulators", self.dkdv_pin_accumulators)
        check_enum("head_dim_split", self.head_dim_split, HeadDimSplit)

    @property
    def name(self) -> str:
        """Such as ``dkdv_m64_n128_w8_s3_pin_dq_m128_n64_w8_s3_chunks``."""
        pin = "_pin" if self.dkdv_pin_accumulators else ""
        return f"dkdv_{_tile_name('dkdv_', self)}{pin}_dq_{_tile_name('dq_', self)}_{self.head_dim_split}"


TILE_FIELDS = ("block_m", "block_n", "num_warps", "num_stages")
DKDV_FIELDS = (*(f"dkdv_{field}" for field in TILE_FIELDS), "dkdv_pin_accumulators")
DQ_FIELDS = tuple(f"dq_{field}" for field in TILE_FIELDS)


def _tile(prefix: str, config: Config) -> tuple[int, int, int, int]:
    block_m, block_n, num_warps, num_stages = (getattr(config, prefix + field) for field in TILE_FIELDS)
    return block_m, block_n, num_warps, num_stages


def _check_tile(prefix: str, config: Config) -> None:
    block_m, block_n, num_warps, num_stages = _tile(prefix, config)
    check_power_of_two(f"{prefix}block_m", block_m, 16, 256)
    check_power_of_two(f"{prefix}block_n", block_n, 16, 256)
    check_power_of_two(f"{prefix}num_warps", num_warps, 1, 16)
    check_range(f"{prefix}num_stages", num_stages, 1, 6)


def _tile_name(prefix: str, config: Config) -> str:
    block_m, block_n, num_warps, num_stages = _tile(prefix, config)
    return f"m{block_m}_n{block_n}_w{num_warps}_s{num_stages}"


def _widths(spec: AttentionSpec, config: Config) -> tuple[int, int]:
    """Columns that blocks of q/k and of v take, padding included."""
    split: HeadDimSplit = config.head_dim_split  # type: ignore[attr-defined]
    widths = (sum(chunk.width for chunk in split_head_dim(d, split)) for d in (spec.head_dim, spec.head_dim_v))
    qk, v = widths
    return qk, v


def _context(spec: AttentionSpec, config: Config) -> Context:
    split: HeadDimSplit = config.head_dim_split  # type: ignore[attr-defined]
    return {
        "qk_chunks": split_head_dim(spec.head_dim, split),
        "v_chunks": split_head_dim(spec.head_dim_v, split),
        "delta_block": max(getattr(config, "dkdv_block_m", 0), getattr(config, "dq_block_m", 0), 64),
        # Triton notices strides that are multiples of 16; head dims such as 72 make contiguous strides that are not.
        "hint_alignment": spec.head_dim % 16 != 0 or spec.head_dim_v % 16 != 0,
    }


def _forward_shared_memory(spec: AttentionSpec, config: Config, dtype: DType) -> int:
    qk, v = _widths(spec, config)
    block_m, block_n, _, num_stages = _tile("", config)
    return dtype.bytes * (block_m * qk + max(1, num_stages - 1) * block_n * (qk + v))


def _backward_shared_memory(spec: AttentionSpec, config: Config, dtype: DType) -> int:
    qk, v = _widths(spec, config)
    dkdv_m, dkdv_n, _, dkdv_stages = _tile("dkdv_", config)
    dq_m, dq_n, _, dq_stages = _tile("dq_", config)
    dkdv = dkdv_n * (qk + v) + max(1, dkdv_stages - 1) * dkdv_m * (qk + v)
    dq = dq_m * (qk + v) + max(1, dq_stages - 1) * dq_n * (qk + v)
    return dtype.bytes * max(dkdv, dq)


def _fits_shared_memory(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    estimate = _DEFINITIONS[spec.pass_].shared_memory_estimate(spec, config, dtype)
    if estimate <= limits.shared_memory:
        return None
    return f"its tiles need {estimate} bytes of shared memory, {limits.arch} has {limits.shared_memory} per block"


def _prefixes(spec: AttentionSpec) -> tuple[str, ...]:
    return ("",) if spec.pass_ is Pass.FORWARD else ("dkdv_", "dq_")


def _accumulators(spec: AttentionSpec, prefix: str, config: Config) -> int:
    """Fp32 values that live in registers across one step, summed over the program."""
    qk, v = _widths(spec, config)
    block_m, block_n, _, _ = _tile(prefix, config)
    if prefix == "":
        return block_m * (v + block_n)
    rows, steps, columns = (block_n, block_m, qk + v) if prefix == "dkdv_" else (block_m, block_n, qk)
    return rows * (columns + 2 * steps)


def _fits_registers(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    for prefix in _prefixes(spec):
        num_warps = _tile(prefix, config)[2]
        per_thread = _accumulators(spec, prefix, config) // (num_warps * 32)
        # 255 registers is the hardware's limit; ptxas keeps accumulators just under it without spilling to memory
        # that matters up to about 320 (D=128 dK/dV at 64x128 with 8 warps, 192 + 64, is among the best on an H200).
        if per_thread > 320:
            return f"{prefix or 'its '}accumulators need about {per_thread} registers a thread, of 255"
    return None


def _uses_its_warps(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    for prefix in _prefixes(spec):
        block_m, block_n, num_warps, _ = _tile(prefix, config)
        rows = block_n if prefix == "dkdv_" else block_m
        if rows < 8 * num_warps:
            return f"{num_warps} warps share {rows} rows: fewer than 8 each"
    return None


CONSTRAINTS = (
    Constraint("shared memory", _fits_shared_memory),
    Constraint("registers", _fits_registers),
    Constraint("warps", _uses_its_warps),
)


def _split_choices(spec: AttentionSpec) -> tuple[Choice, ...]:
    if not is_split_a_choice(spec.head_dim, spec.head_dim_v):
        return (HeadDimSplit.CHUNKS,)
    return (HeadDimSplit.CHUNKS, HeadDimSplit.PADDED)


def _forward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> dict[str, tuple[Choice, ...]]:
    if dtype is DType.FP32:
        return {"block_m": (32, 64), "block_n": (16, 32), "num_warps": (4, 8), "num_stages": (1, 2),
                "head_dim_split": _split_choices(spec)}  # fmt: skip
    return {
        "block_m": (64, 128) if quick else (64, 128, 256),
        "block_n": (64, 128) if quick else (32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (2, 3) if quick else (2, 3, 4),
        "head_dim_split": _split_choices(spec),
    }


def _backward_space(spec: AttentionSpec, dtype: DType, limits: Limits, quick: bool) -> dict[str, tuple[Choice, ...]]:
    tiles: tuple[Choice, ...] = (64, 128) if quick else (32, 64, 128)
    stages: tuple[Choice, ...] = (2, 3)
    if dtype is DType.FP32:
        tiles, stages = (16, 32), (1, 2)
    space: dict[str, tuple[Choice, ...]] = {}
    for prefix in ("dkdv_", "dq_"):
        space |= {f"{prefix}block_m": tiles, f"{prefix}block_n": tiles}
        space |= {f"{prefix}num_warps": (4, 8), f"{prefix}num_stages": stages}
    pins: tuple[Choice, ...] = (False, True) if limits.arch == "sm_90" and dtype is not DType.FP32 else (False,)
    return space | {"dkdv_pin_accumulators": pins, "head_dim_split": _split_choices(spec)}


def _first_that_fits(spec: AttentionSpec, candidates: list[Config], dtype: DType, limits: Limits) -> Config:
    definition = _DEFINITIONS[spec.pass_]
    fitting = [c for c in candidates if not definition.violations(spec, c, dtype, limits)]
    return (fitting or candidates[-1:])[0]


def _forward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    tiles = [
        (128, 128, 8, 2),
        (128, 64, 8, 3),
        (128, 64, 8, 2),
        (128, 32, 8, 2),
        (64, 32, 4, 2),
        (64, 32, 4, 1),
    ]
    if dtype is DType.FP32:
        tiles = [(64, 32, 4, 2), (32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 2, 1)]
    split = best_split(spec.head_dim, spec.head_dim_v)
    candidates: list[Config] = [
        PortableForwardConfig(block_m=m, block_n=n, num_warps=w, num_stages=s, head_dim_split=split)
        for m, n, w, s in tiles
    ]
    return _first_that_fits(spec, candidates, dtype, limits)


def _backward_default(spec: AttentionSpec, dtype: DType, limits: Limits) -> Config:
    tiles = [
        ((64, 128, 8, 3), (128, 64, 8, 3)),
        ((64, 128, 8, 2), (128, 64, 8, 2)),
        ((64, 64, 4, 2), (64, 64, 4, 2)),
        ((32, 64, 4, 2), (64, 32, 4, 2)),
        ((32, 32, 4, 1), (32, 32, 4, 1)),
    ]
    if dtype is DType.FP32:
        tiles = [((32, 32, 4, 1), (32, 32, 4, 1)), ((16, 16, 2, 1), (16, 16, 2, 1))]
    split = best_split(spec.head_dim, spec.head_dim_v)
    pin = limits.arch == "sm_90" and dtype is not DType.FP32
    candidates: list[Config] = []
    for dkdv, dq in tiles:
        fields = dict(zip((*DKDV_FIELDS, *DQ_FIELDS), (*dkdv, pin, *dq), strict=True))
        candidates.append(PortableBackwardConfig(**fields, head_dim_split=split))
    return _first_that_fits(spec, candidates, dtype, limits)


def _supports(spec: AttentionSpec, limits: Limits) -> str | None:
    return None


FORWARD = ScheduleDefinition(
    schedule=Schedule.PORTABLE,
    pass_=Pass.FORWARD,
    config_type=PortableForwardConfig,
    template="portable_forward.py.jinja",
    context=_context,
    space=_forward_space,
    constraints=CONSTRAINTS,
    default=_forward_default,
    shared_memory_estimate=_forward_shared_memory,
    kernels={"forward": TILE_FIELDS},
    supports=_supports,
)
BACKWARD = ScheduleDefinition(
    schedule=Schedule.PORTABLE,
    pass_=Pass.BACKWARD,
    config_type=PortableBackwardConfig,
    template="portable_backward.py.jinja",
    context=_context,
    space=_backward_space,
    constraints=CONSTRAINTS,
    default=_backward_default,
    shared_memory_estimate=_backward_shared_memory,
    kernels={"dkdv": DKDV_FIELDS, "dq": DQ_FIELDS},
    supports=_supports,
)
_DEFINITIONS = {Pass.FORWARD: FORWARD, Pass.BACKWARD: BACKWARD}

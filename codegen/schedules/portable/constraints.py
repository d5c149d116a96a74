"""What rules a portable config out before anything is compiled."""

from __future__ import annotations

from attnforge.codegen.head_dims import split_head_dim
from attnforge.codegen.schedules.base import Config, Constraint, Limits
from attnforge.codegen.schedules.portable.config import prefixes_of, split_of, tile_of
from attnforge.codegen.spec import AttentionSpec, DType

WGMMA_REGISTERS, REGISTERS = 250, 200
"""Accumulators a thread beyond which kernels spill by the kilobyte, on sm_90 and elsewhere (where operands want
registers too). The hardware has 255, but the scores' are reused: dK/dV tiles of 240 still spill under 400 bytes."""


def widths(spec: AttentionSpec, config: Config) -> tuple[int, int]:
    """Columns that tiles of q/k and of v take, padding included."""
    split = split_of(config)
    qk, v = (sum(chunk.width for chunk in split_head_dim(d, split)) for d in (spec.head_dim, spec.head_dim_v))
    return qk, v


def kernel_shared_memory(spec: AttentionSpec, config: Config, prefix: str, dtype: DType, limits: Limits) -> int:
    """Bytes of shared memory of one kernel's tiles; the compiler has the last word.

    On sm_90 and sm_100, whose tensor cores read shared memory, Triton keeps num_stages buffers of what a loop loads;
    elsewhere one less, but it may convert P and dS through shared memory, as it does on sm_100 for the gradients.
    Compiled kernels take exactly this and up to 1 KB of LSE and delta on sm_90, and no more elsewhere but for that.
    """
    qk, v = widths(spec, config)
    tile = tile_of(config, prefix)
    stays, loops = (tile.block_n, tile.block_m) if prefix == "dkdv_" else (tile.block_m, tile.block_n)
    elements = stays * (qk if prefix == "" else qk + v)
    converted = tile.block_m * tile.block_n
    if limits.arch in ("sm_90", "sm_100"):
        elements += tile.num_stages * loops * (qk + v)
        if limits.arch == "sm_100" and prefix:
            elements += loops * (qk + v) if prefix == "dkdv_" else 2 * converted
    else:
        elements += max(1, tile.num_stages - 1) * loops * (qk + v)
        elements += 2 * converted if prefix == "dkdv_" else converted
    return dtype.bytes * elements


def shared_memory_estimate(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> int:
    """Bytes of the widest kernel."""
    return max(kernel_shared_memory(spec, config, prefix, dtype, limits) for prefix in prefixes_of(config))


def _fits_shared_memory(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    estimate = shared_memory_estimate(spec, config, dtype, limits)
    if estimate <= limits.shared_memory:
        return None
    return f"its tiles need {estimate} bytes of shared memory, {limits.arch} has {limits.shared_memory} per block"


def accumulators(spec: AttentionSpec, config: Config, prefix: str) -> int:
    """Fp32 values that one program holds across a step: what it sums up, and the scores."""
    qk, v = widths(spec, config)
    tile = tile_of(config, prefix)
    if prefix == "":
        return tile.block_m * (v + tile.block_n)
    if prefix == "dkdv_":
        return tile.block_n * (qk + v + 2 * tile.block_m)
    return tile.block_m * (qk + 2 * tile.block_n)


def _fits_registers(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    most = WGMMA_REGISTERS if limits.arch == "sm_90" else REGISTERS
    for prefix in prefixes_of(config):
        per_thread = accumulators(spec, config, prefix) // (tile_of(config, prefix).num_warps * 32)
        if per_thread > most:
            return f"{prefix}accumulators need about {per_thread} registers a thread, {most} is the most"
    return None


def _feeds_its_warps(spec: AttentionSpec, config: Config, dtype: DType, limits: Limits) -> str | None:
    for prefix in prefixes_of(config):
        tile = tile_of(config, prefix)
        rows = tile.block_n if prefix == "dkdv_" else tile.block_m
        # Two warpgroups on 64 keys are worth trying for the wide dK/dV of D=256 (302 TFLOP/s on an H200, not causal,
        # against 298 with one on 32 keys); on 64 rows of a forward or dQ they took 1.4-1.8 x as long as one (D>160).
        least = 4 if dtype is DType.FP32 else 8 if prefix == "dkdv_" else 16
        if rows < least * tile.num_warps:
            return f"{prefix}tile: {tile.num_warps} warps share {rows} rows, fewer than {least} each"
    return None


CONSTRAINTS = (
    Constraint("shared memory", _fits_shared_memory),
    Constraint("registers", _fits_registers),
    Constraint("warps", _feeds_its_warps),
)

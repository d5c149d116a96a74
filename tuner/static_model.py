"""Predicts a config's time from its tiles and what the compiler says: for ranking configs where there is no GPU.

A roofline of one SM. A step of a kernel's loop costs one program
    tensor cores   its multiply-adds, or the operands that wgmma reads from shared memory, whichever takes longer
    scalar units   one exponential and a few fp32 operations a score
    L2             the tiles that the step loads
    latency        the above two in a row, plus fixed costs, or a load's latency over the stages that hide it
and the programs that share the SM (as many as shared memory, registers and warps allow) overlap: each unit's load adds
up, the latency does not, and the step takes a norm of them. Programs fill the GPU in waves; under a
causal mask they differ in length and are packed longest first.

The constants below were fitted to 1,300 kernels measured on an H200 (portable schedule, bf16, head dims 32 to 256,
16k tokens). The config that it picks among those tried takes 3 % longer than the best, 28 % at worst; without the
compiler's word 10 %, 46 % at worst. On other archs only the SM's rates are known, so the order is a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType

from attnforge.codegen import AttentionSpec, Config, DType
from attnforge.codegen.schedules.portable.config import prefixes_of, tile_of
from attnforge.codegen.schedules.portable.constraints import accumulators, kernel_shared_memory, widths
from attnforge.compilation import KernelReport
from attnforge.problem import Problem
from attnforge.target import Target

SYNC_CYCLES = 290.0
"""Of one step: barriers and the waits for wgmma, which plain Triton does not overlap."""
LOAD_CYCLES = 1000.0
"""Latency of a tile's load from L2, as one stage sees it."""
SCALAR_OPERATIONS = 1.4
"""Fp32 operations a score beside its exponential, per lane and cycle of 128."""
SPILL_CYCLES_PER_BYTE = 0.12
"""Of one step, for each byte that a warp's thread keeps in memory."""
TALL_WARPS = 0.16
"""Share of the time that each 16 rows of a warp beyond the first cost: a warpgroup that owns two wgmma tiles has no
other warpgroup to overlap its softmax with."""
OVERLAP = 1.6
"""Exponent of the norm in which units that work side by side add up: 1 would be in turns, infinity for free."""
PROLOGUE_CYCLES = 740.0
STORE_BYTES_PER_CYCLE = 50.0
LAST_WAVE = 1.35
"""Mean programs that a causal kernel's end waits for."""


@dataclass(frozen=True, slots=True)
class SmRates:
    """What one SM does in a cycle, and what it holds."""

    tensor_flops: float
    """Dense fp16 operations (NVIDIA's and AMD's data sheets, over SMs and clock)."""
    exponentials: float = 16.0
    scalar_operations: float = 128.0
    shared_memory_bytes: float = 128.0
    l2_bytes: float = 60.0
    registers: int = 65536
    warps: int = 64
    lanes: int = 32
    """Threads of a warp, or of a wavefront."""


_RATES = {
    "sm_80": SmRates(2048.0),
    "sm_86": SmRates(1024.0, warps=48),
    "sm_89": SmRates(1024.0, warps=48),
    "sm_90": SmRates(4096.0),
    "sm_100": SmRates(8192.0),
    "sm_120": SmRates(1024.0, warps=48),
    "gfx942": SmRates(2048.0, registers=131072, warps=32, lanes=64),
    "gfx950": SmRates(4096.0, registers=131072, warps=32, lanes=64),
}
_UNKNOWN = SmRates(2048.0)


@dataclass(frozen=True, slots=True)
class _Loop:
    """One kernel's program: a block of rows that stays, and a loop over tiles of ``step`` rows of the other side."""

    stays: int
    step: int
    columns: int
    """Of the tiles that one step loads."""
    products: float
    """Columns summed over the matrix products of one step."""
    read_again: int
    """Columns of the block that stays, as far as each step's products read it from shared memory."""
    stored: int
    """Columns that a program stores for each row."""
    num_warps: int
    num_stages: int
    over_queries: bool


def predict(
    spec: AttentionSpec,
    config: Config,
    problem: Problem,
    target: Target,
    reported: Mapping[str, KernelReport] = MappingProxyType({}),
) -> dict[str, float]:
    """Cycles of each kernel that the config shapes, by name: smaller is better.

    Shared memory and registers of kernels that are not among ``reported`` are estimated from the tiles.
    """
    predicted = {}
    for prefix in prefixes_of(config):
        kernel = prefix.removesuffix("_") or "forward"
        needs = reported.get(kernel) or _estimated(spec, config, prefix, problem.dtype, target)
        predicted[kernel] = _cycles(spec, _loop(spec, config, prefix), problem, target, needs)
    return predicted


def _estimated(spec: AttentionSpec, config: Config, prefix: str, dtype: DType, target: Target) -> KernelReport:
    """The sweep's kernels took about 60 registers beside their accumulators."""
    per_thread = accumulators(spec, config, prefix) // (tile_of(config, prefix).num_warps * 32)
    shared = kernel_shared_memory(spec, config, prefix, dtype, target.limits)
    registers = per_thread + 60
    return KernelReport(prefix, shared, min(255, registers), max(0, registers - 320) * 4, ())


def _loop(spec: AttentionSpec, config: Config, prefix: str) -> _Loop:
    qk, v = widths(spec, config)
    tile = tile_of(config, prefix)
    if prefix == "dkdv_":
        sizes = (tile.block_n, tile.block_m, qk + v, 2.0 * (qk + v), qk + v, qk + v)
    elif prefix == "dq_":
        sizes = (tile.block_m, tile.block_n, qk + v, 2.0 * qk + v, qk + v, qk)
    else:
        sizes = (tile.block_m, tile.block_n, qk + v, float(qk + v), qk, v)
    return _Loop(*sizes, tile.num_warps, tile.num_stages, over_queries=prefix == "dkdv_")


def _cycles(spec: AttentionSpec, loop: _Loop, problem: Problem, target: Target, needs: KernelReport) -> float:
    rates = _RATES.get(target.arch, _UNKNOWN)
    resident = _resident(loop, target, rates, needs)
    step = _step_cycles(loop, problem.dtype, rates, needs, resident)
    steps = _steps(loop, problem, spec.causal)
    prologue = PROLOGUE_CYCLES + loop.stays * loop.stored * problem.dtype.bytes / STORE_BYTES_PER_CYCLE
    programs = [count * step + prologue for count in steps]
    kv_side = problem.kv_heads if loop.over_queries else problem.heads
    copies, slots = problem.batch * kv_side, target.sm_count * resident
    if spec.causal:
        packed = sum(programs) * copies / slots + LAST_WAVE * sum(programs) / len(programs)
        return max(packed, max(programs))
    waves = len(programs) * copies / slots
    last = ceil((waves % 1.0) * resident)
    if not last:
        return waves * programs[0]
    return int(waves) * programs[0] + steps[0] * _step_cycles(loop, problem.dtype, rates, needs, last) + prologue


def _resident(loop: _Loop, target: Target, rates: SmRates, needs: KernelReport) -> int:
    """Programs that share an SM. Each takes 1 KB of shared memory for the system; registers come in eights."""
    by_shared_memory = (target.shared_memory + 1024) // (needs.shared_bytes + 1024)
    by_registers = rates.registers // (ceil(max(needs.registers, 32) / 8) * 8 * loop.num_warps * rates.lanes)
    return max(1, min(by_shared_memory, by_registers, rates.warps // loop.num_warps, 32))


def _step_cycles(loop: _Loop, dtype: DType, rates: SmRates, needs: KernelReport, resident: int) -> float:
    """Cycles in which all resident programs make one step."""
    scores = loop.stays * loop.step
    flops = rates.tensor_flops * (2 / dtype.bytes if dtype is not DType.FP32 else 1 / 16)
    # Each warpgroup reads the looped operand of each product for itself.
    warpgroups = max(1, loop.num_warps // 4)
    operands = dtype.bytes * (loop.stays * loop.read_again + warpgroups * loop.step * loop.products)
    tensor = max(2 * scores * loop.products / flops, operands / rates.shared_memory_bytes)
    scalar = scores * (1 / rates.exponentials + SCALAR_OPERATIONS / rates.scalar_operations)
    l2 = dtype.bytes * loop.step * loop.columns / rates.l2_bytes
    latency = tensor + scalar + SYNC_CYCLES
    if loop.num_stages == 1:
        latency += LOAD_CYCLES
    else:
        latency = _overlapped(latency, LOAD_CYCLES / (loop.num_stages - 1))
    spilled = resident * needs.spill_bytes * loop.num_warps * SPILL_CYCLES_PER_BYTE
    tall = 1 + TALL_WARPS * max(0.0, loop.stays / (16 * loop.num_warps) - 1)
    return tall * _overlapped(resident * tensor, resident * scalar, resident * l2, latency) + spilled


def _overlapped(*cycles: float) -> float:
    """What overlaps takes longer than its longest part, and less than the sum."""
    return float(sum(part**OVERLAP for part in cycles) ** (1 / OVERLAP))


def _steps(loop: _Loop, problem: Problem, causal: bool) -> Sequence[int]:
    """How many steps each of a head's programs makes."""
    own, other = problem.seqlen_q, problem.seqlen_k
    if loop.over_queries:
        own, other = other, own
    blocks = range(ceil(own / loop.stays))
    if not causal:
        return [ceil(other / loop.step)] * len(blocks)
    shift = problem.seqlen_k - problem.seqlen_q
    if loop.over_queries:
        first_queries = (max(0, block * loop.stays - shift) for block in blocks)
        return [max(0, ceil(other / loop.step) - first // loop.step) for first in first_queries]
    ends = (min((block + 1) * loop.stays + shift, other) for block in blocks)
    return [max(0, ceil(end / loop.step)) for end in ends]

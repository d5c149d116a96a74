"""What a run of the bench found, as it is written to ``results.json``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from attnforge.codegen import DType, Pass
from attnforge.errors import AttnforgeError

FORMAT = 1
OURS = "attnforge"
"""Our name among the implementations."""
HOST_BAR_US = 12.0
"""What a dispatched forward may cost over a raw launch (µs of host time)."""


class BadResultsError(AttnforgeError):
    """A file that is no ``results.json`` of this version."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: not a result of `attnforge bench` (format {FORMAT}): {reason}")


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="measurement"):
    """One implementation's times in one cell."""

    median_ms: float
    low_ms: float
    """First quartile."""
    high_ms: float
    """Third quartile."""
    rounds: int
    tflops: float
    """Of the median."""
    setup_s: float
    """Wall seconds of the first call, compilation included; of the forward in a forward cell, else of the backward."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="failure"):
    """Why one implementation has no time in one cell."""

    kind: str
    """unsupported, out of memory, wrong result, or error."""
    reason: str


Outcome = Measurement | Failure


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the dispatcher picked for ours in this cell."""

    kind: str
    """exact, bucket, nearest or default."""
    reason: str
    variant: str
    cache: str | None
    """The tuned cache that the entry came from; None for the default config."""


class Cell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pass of one case."""

    pass_: Pass = msgspec.field(name="pass")
    batch: int
    heads: int
    kv_heads: int
    seqlen: int
    head_dim: int
    causal: bool
    dtype: DType
    decision: DecisionRecord | None
    """None when ours could not decide; its outcome says why."""
    outcomes: dict[str, Outcome]
    """By the implementation's name, in the order of the table."""

    @property
    def name(self) -> str:
        """Such as ``D128 S4096 causal``."""
        return f"D{self.head_dim} S{self.seqlen} {'causal' if self.causal else 'full'}"

    def ratio(self, peer: str) -> float | None:
        """How many times faster ours is than a peer; None unless both have a time."""
        ours, theirs = self.outcomes.get(OURS), self.outcomes.get(peer)
        if isinstance(ours, Measurement) and isinstance(theirs, Measurement):
            return theirs.median_ms / ours.median_ms
        return None


class HostCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="host cost"):
    """Host time of one small call (µs, medians), without waiting for the GPU."""

    shape: tuple[int, int, int, int]
    """(B, H, S, D) of q, k and v."""
    dispatched_us: float
    """attnforge.attention, no gradients."""
    raw_launch_us: float
    """The same compiled kernel, held, its output preallocated."""
    sdpa_us: float
    """torch.nn.functional.scaled_dot_product_attention, no gradients."""
    dispatched_grad_us: float
    """attnforge.attention with inputs that require gradients."""
    sdpa_grad_us: float

    @property
    def overhead_us(self) -> float:
        """What validation, decision, allocation and autograd cost over the raw launch."""
        return self.dispatched_us - self.raw_launch_us


class GpuState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What nvidia-smi says of the GPU at one moment; None where it does not know."""

    sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    processes: int | None
    """Compute processes on the GPU, ours among them."""


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and with what a run was made."""

    gpu: str
    arch: str
    driver: str | None
    python: str
    versions: dict[str, str]
    """Of torch, CUDA, cuDNN, triton, attnforge and the peers that have one."""
    before: GpuState | None
    after: GpuState | None
    """None when nvidia-smi is not there."""


class Results(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run."""

    format: int = FORMAT
    created: str
    """ISO 8601, UTC."""
    environment: Environment
    implementations: dict[str, str]
    """Labels by name, in the order of the table; the first is ours."""
    cells: list[Cell]
    host_cost: HostCost | Failure
    seconds: float
    """What the run took."""

    @property
    def peers(self) -> dict[str, str]:
        """Labels of the others, by name."""
        return {name: label for name, label in self.implementations.items() if name != OURS}

    def passes(self) -> list[Pass]:
        """The passes that were run, forward first."""
        return [pass_ for pass_ in Pass if any(cell.pass_ is pass_ for cell in self.cells)]


def write_results(results: Results, path: Path) -> None:
    """Write ``results`` as indented JSON; the folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def read_results(path: Path) -> Results:
    """Read what write_results wrote. Raises BadResultsError, naming the file and the field."""
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadResultsError(path, str(error)) from error
    if results.format != FORMAT:
        raise BadResultsError(path, f"its format is {results.format}")
    return results

"""Tuned entries to test with, and the files that hold them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attnforge.cache.document import decode
from attnforge.cache.schema import Entry, Source, Toolchain, TunedCache, TunedEntry, UnfitEntry
from attnforge.codegen import (
    AttentionSpec,
    Config,
    DType,
    HeadDimSplit,
    Pass,
    PortableForwardConfig,
    Schedule,
    fields_of,
)
from attnforge.problem import Bucket, Problem
from attnforge.target import Target

ARCH = Target.for_arch("sm_90")
GPU = Target(arch="sm_90", name="NVIDIA H200", sm_count=132, shared_memory=232448)
TOOLCHAIN = Toolchain(triton="3.6.0", torch="2.11.0+cu130", templates="0123456789abcdef")
EARLY = datetime(2026, 1, 1, tzinfo=UTC)
LATE = datetime(2026, 2, 1, tzinfo=UTC)


def a_spec(head_dim: int = 128) -> AttentionSpec:
    return AttentionSpec(pass_=Pass.FORWARD, head_dim=head_dim, head_dim_v=head_dim, causal=True)


def a_problem(seqlen: int = 4096) -> Problem:
    return Problem(batch=4, heads=16, kv_heads=16, seqlen_q=seqlen, seqlen_k=seqlen, dtype=DType.BF16)


def a_config(block_m: int = 128) -> Config:
    return PortableForwardConfig(
        block_m=block_m, block_n=64, num_warps=8, num_stages=3, head_dim_split=HeadDimSplit.CHUNKS
    )


def measured(head_dim: int = 128, seqlen: int = 4096, **changes: Any) -> TunedEntry:
    problem = a_problem(seqlen)
    fields: dict[str, Any] = {
        "spec": a_spec(head_dim),
        "problem": problem,
        "bucket": Bucket.of(problem),
        "schedule": Schedule.PORTABLE,
        "config": a_config(),
        "source": Source.MEASURED,
        "median_ms": 1.25,
        "default_ms": 1.5,
        "gain": 1.2,
        "trials": 40,
        "created": EARLY,
        "toolchain": TOOLCHAIN,
    }
    return TunedEntry(**fields | changes)


def unfit(head_dim: int = 128, seqlen: int = 4096, **changes: Any) -> UnfitEntry:
    """An entry of templates whose configs have a field that these do not know."""
    entry = measured(head_dim, seqlen, **changes)
    values = {field: getattr(entry, field) for field in Entry.__struct_fields__}
    config = {
        field: value if isinstance(value, int) else str(value) for field, value in fields_of(entry.config).items()
    }
    return UnfitEntry(config=config | {"cluster": 2}, reason="config has unknown fields: cluster", **values)


def predicted(head_dim: int = 128, seqlen: int = 4096, **changes: Any) -> TunedEntry:
    return measured(head_dim, seqlen, **{"source": Source.PREDICTED, "median_ms": None, "default_ms": None} | changes)


def a_cache(*entries: TunedEntry, target: Target = ARCH, unfit: tuple[UnfitEntry, ...] = ()) -> TunedCache:
    return TunedCache(target=target, attnforge="0.1.0", entries=entries, unfit=unfit)


def signed(body: bytes, file_format: int = 1) -> bytes:
    """A file whose digest is right whatever its body: what an attacker, or a bug of another version, would write."""
    return f"# attnforge tuned cache, format {file_format}, sha256 {hashlib.sha256(body).hexdigest()}\n".encode() + body


def put(path: Path, content: bytes) -> Path:
    """Writes a file as attnforge would: in folders and with a mode that are the user's alone."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def entries_of(path: Path) -> tuple[TunedEntry, ...]:
    """What a tuned cache on disk holds."""
    return decode(path.read_bytes(), path).entries

"""Compares what a tune has chosen with what trying everything found: ``python benchmarks/tune_against_sweep.py CACHE``.

For every spec and problem of the committed exhaustive sweep of the hopper schedule, the tuned cache's config and the
sweep's fastest take turns on this GPU as the finalists of a tune do: two fresh workers, rounds of random order. Prints
by how much the chosen config is slower, with the interval; exits with 1 when one is slower by more than 2 %. Run it on
the sweep's GPU, after `attnforge tune` has kept its winners in CACHE.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from attnforge.cache.document import decode
from attnforge.cache.schema import TunedEntry
from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, config_type
from attnforge.compilation import Failure, VariantData
from attnforge.problem import Problem
from attnforge.tuner.comparer import Comparer
from attnforge.tuner.comparison import compare
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import Compare
from attnforge.tuner.task import self_attention

SWEEP = Path(__file__).parent / "sweeps" / "h200-hopper-2026-11-23.json"
MOST = 1.02
"""Times as long as the sweep's fastest that a tune's choice may take."""


def fastest_of_sweep() -> dict[tuple[AttentionSpec, Problem], Variant]:
    """By spec and problem."""
    found: dict[tuple[AttentionSpec, Problem], tuple[float, Variant]] = {}
    for row in json.loads(SWEEP.read_text())["rows"]:
        pass_, head_dim = Pass(row["pass"]), row["head_dim"]
        spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim, causal=row["causal"])
        config = msgspec.convert(row["config"], config_type(Schedule.HOPPER, pass_))
        key = spec, self_attention(head_dim, row["seqlen"], DType.BF16)
        new = sum(row["ms"].values()), Variant(spec, Schedule.HOPPER, config)
        found[key] = min(found.get(key, new), new, key=lambda pair: pair[0])
    return {key: variant for key, (_, variant) in found.items()}


async def compared(requests: list[Compare]) -> list[object]:
    """What two fresh workers say of each."""
    with Measurer() as measurer, Comparer(measurer, contextlib.AsyncExitStack) as comparer:
        comparer.expect()
        return list(await comparer.compare(requests))


def lines(entries: dict[tuple[AttentionSpec, Problem], TunedEntry]) -> Iterator[tuple[str, bool]]:
    """What to print of each problem, and whether the choice is good enough."""
    unlike = []
    for (spec, problem), fastest in fastest_of_sweep().items():
        entry = entries.get((spec, problem))
        if entry is None:
            yield f"{spec.name} {problem.seqlen_q}: not in the cache", False
        elif entry.variant == fastest:
            yield f"{spec.name} {problem.seqlen_q}: the sweep's fastest", True
        else:
            unlike.append((entry.variant, fastest, problem))
    requests = [Compare(tuple(map(VariantData.of, pair)), problem, seed=0) for *pair, problem in unlike]
    for (chosen, fastest, problem), workers in zip(unlike, asyncio.run(compared(requests)), strict=True):
        words = f"{chosen.spec.name} {problem.seqlen_q}: {chosen.schedule}/{chosen.config.name}"
        if isinstance(workers, Failure):
            yield f"{words}: {workers.message}", False
            continue
        chosen_ms, fastest_ms = zip(*(each.rounds_ms for each in workers), strict=True)
        found = compare(chosen_ms, fastest_ms)
        yield (
            f"{words}: {found.ratio - 1:+.1%} ({found.low - 1:+.1%} to {found.high - 1:+.1%}) beside "
            f"{fastest.schedule}/{fastest.config.name}",
            found.ratio <= MOST,
        )


def main() -> None:
    """Compare, print and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="a tuned cache: `attnforge cache path` prints where")
    path: Path = parser.parse_args().cache
    newest = sorted(decode(path.read_bytes(), path).entries, key=lambda entry: entry.created)
    good = []
    for line, is_good in lines({(entry.spec, entry.problem): entry for entry in newest}):
        print(line if is_good else f"{line}  <- more than {MOST - 1:.0%}", flush=True)
        good.append(is_good)
    print(f"{sum(good)} of {len(good)} are within {MOST - 1:.0%} of the exhaustive winner")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()

"""Measures the hopper schedule, which the tuner does not try by itself, beside the portable default.

    python benchmarks/hopper.py --head-dim 128 --seqlen 4096 --causal --out hopper.jsonl
    python benchmarks/hopper.py --pass backward --head-dim 64 --head-dim 128 --defaults

On the 16k-token problems of `attnforge tune`. Every config is compiled ahead, must pass the whole accuracy gate, and is
then timed with a cold L2, in a process of its own: one that hangs costs its deadline. A line of JSON for each config,
and a last one of the three best and the portable default, timed in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from itertools import product
from pathlib import Path
from statistics import median

from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, schedule_of
from attnforge.compilation import CompilePool, Failure, VariantData
from attnforge.operations import operations
from attnforge.problem import Problem
from attnforge.target import Target
from attnforge.tuner.measurer import Measurer
from attnforge.tuner.messages import CheckNumerics, Compare, Measure
from attnforge.tuner.search_space import SearchSpace
from attnforge.tuner.task import self_attention


def variants_of(spec: AttentionSpec, dtype: DType, target: Target, *, defaults: bool) -> list[Variant]:
    """The portable default, hopper's, and unless ``defaults`` what else of its quick space no constraint excludes."""
    hopper = schedule_of(Schedule.HOPPER, spec.pass_)
    first = [
        Variant(spec, schedule, schedule_of(schedule, spec.pass_).default(spec, dtype, target.limits))
        for schedule in (Schedule.PORTABLE, Schedule.HOPPER)
    ]
    space = SearchSpace(spec, hopper, dtype, target.limits, quick=True)
    rest = [] if defaults else [space.variant(config) for config in space.configs]
    return list(dict.fromkeys([*first, *rest]))


async def measure(variants: list[Variant], problem: Problem, measurer: Measurer) -> list[dict[str, object]]:
    """What comes of each variant, and of a comparison of the best."""
    lines: list[dict[str, object]] = []
    times: dict[Variant, float] = {}
    for variant in variants:
        data = VariantData.of(variant)
        verdict = await measurer.check(CheckNumerics(data, problem.dtype))
        outcome = verdict if isinstance(verdict, Failure) else await measurer.measure(Measure(data, problem))
        if isinstance(outcome, Failure):
            lines.append({"variant": variant.name, "failure": f"{outcome.kind}: {outcome.message}"[:500]})
        else:
            times[variant] = outcome.total_ms
            tflops = operations(variant.spec, problem) / outcome.total_ms * 1e-9
            kernels = {kernel: round(ms, 4) for kernel, ms in outcome.kernel_ms.items()}
            line = {"variant": variant.name, "seqlen": problem.seqlen_q, "tflops": round(tflops, 1), "ms": kernels}
            lines.append(line)
        print(json.dumps(lines[-1]), flush=True)
    best = sorted(times, key=lambda variant: times[variant])[:3]
    finalists = tuple(dict.fromkeys([*best, *(variant for variant in variants[:1] if variant in times)]))
    compared = await measurer.compare(Compare(tuple(map(VariantData.of, finalists)), problem, 0))
    if not isinstance(compared, Failure):
        rates = {
            variant.name: round(operations(variant.spec, problem) / median(rounds) * 1e-9, 1)
            for variant, rounds in zip(finalists, compared.rounds_ms, strict=True)
        }
        lines.append({"compared": rates, "seqlen": problem.seqlen_q})
        print(json.dumps(lines[-1]), flush=True)
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pass", type=Pass, choices=list(Pass), default=Pass.FORWARD, dest="pass_")
    parser.add_argument("--head-dim", type=int, action="append", required=True)
    parser.add_argument("--seqlen", type=int, action="append")
    parser.add_argument("--causal", action=argparse.BooleanOptionalAction)
    parser.add_argument("--defaults", action="store_true", help="only where each schedule starts")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--out", type=Path)
    asyncio.run(run(parser.parse_args()))


async def run(options: argparse.Namespace) -> None:
    """Measure what the options ask for."""
    with Measurer() as measurer, CompilePool(options.jobs) as pool:
        target = (await measurer.identify()).target
        for head_dim, causal in product(options.head_dim, (False, True)):
            if options.causal not in (None, causal):
                continue
            spec = AttentionSpec(pass_=options.pass_, head_dim=head_dim, head_dim_v=head_dim, causal=causal)
            variants = variants_of(spec, DType.BF16, target, defaults=options.defaults)
            for seqlen in options.seqlen or (1024, 4096, 16384):
                problem = self_attention(head_dim, seqlen, DType.BF16)
                ahead = [pool.submit(variant, problem, target) for variant in variants]
                runs = [v for v, future in zip(variants, ahead, strict=True) if not _is_poor(v, future.result())]
                lines = await measure(runs, problem, measurer)
                if options.out:
                    with options.out.open("a") as file:
                        file.writelines(json.dumps(line) + "\n" for line in lines)


def _is_poor(variant: Variant, compiled: object) -> bool:
    """Whether ptxas says already that a config is not worth its time on the GPU."""
    if isinstance(compiled, Failure):
        print(json.dumps({"variant": variant.name, "failure": compiled.message[:500]}))
        return True
    return variant.schedule is Schedule.HOPPER and bool(getattr(compiled, "serialised", ()))


if __name__ == "__main__":
    main()

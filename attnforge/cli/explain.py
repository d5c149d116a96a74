"""``attnforge explain``: which kernel a call would get, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

from attnforge.cache.schema import Source
from attnforge.cache.store import CacheFile, LoadedCache, TunedCacheStore
from attnforge.cli.selection import DTypeOption
from attnforge.codegen import AttentionSpec, DType, Pass, Schedule, Variant, fields_of
from attnforge.dispatch.decision import Decision, DecisionKind, Match, best_by_kind, candidates, decide
from attnforge.errors import CacheRefused, KernelNotGeneratedError
from attnforge.kernels import Kernels
from attnforge.problem import Bucket, Problem
from attnforge.settings import Settings
from attnforge.target import Target


def _shape(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != 4:
        raise typer.BadParameter(f"{text!r} is not four numbers, such as 4,16,4096,128", param_hint="'--shape'")
    return sizes


def explain(
    shape: Annotated[
        str, typer.Option(metavar="B,H,S,D", help="Of q: batch, heads, seqlen, head dim, such as 4,16,4096,128.")
    ],
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Heads of k and v; those of q when left out.")] = None,
    seqlen_k: Annotated[int | None, typer.Option(min=1, help="Keys; as many as queries when left out.")] = None,
    head_dim_v: Annotated[int | None, typer.Option(help="Head dim of v and out; that of q when left out.")] = None,
    causal: Annotated[bool, typer.Option("--causal/--no-causal", help="With a causal mask or without.")] = False,
    dtype: DTypeOption = DType.BF16,
    pass_: Annotated[Pass, typer.Option("--pass", help="The pass to explain.")] = Pass.FORWARD,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="For a call that asks for gradients that repeat to the bit.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="An arch such as sm_90, or a GPU that there is a tuned cache of, by the stem of its file, such as"
            " sm_90-nvidia-h200; this machine's GPU when left out."
        ),
    ] = None,
) -> None:
    """Show which kernel and config a call would get, and why; needs no GPU when a target is named.

    Example: attnforge explain --shape 4,16,4096,128 --causal --target sm_90
    """
    batch, heads, seqlen_q, head_dim = _shape(shape)
    spec = AttentionSpec(pass_=pass_, head_dim=head_dim, head_dim_v=head_dim_v or head_dim, causal=causal)
    problem = Problem(
        batch=batch, heads=heads, kv_heads=kv_heads or heads, seqlen_q=seqlen_q, seqlen_k=seqlen_k or seqlen_q,
        dtype=dtype,
    )  # fmt: skip
    settings = Settings.from_environment()
    store = TunedCacheStore(settings)
    call = _Call(spec, problem, Target.current() if target is None else store.target(target), deterministic)
    _print_explanation(call, store, Kernels.installed(settings))


@dataclass(frozen=True, slots=True)
class _Call:
    """What is explained."""

    spec: AttentionSpec
    problem: Problem
    target: Target
    deterministic: bool

    def decide(self, caches: Sequence[LoadedCache], refused: Sequence[Schedule] = ()) -> Decision:
        return decide(
            self.spec, self.problem, self.target, caches, refused=refused, deterministic=self.deterministic
        )  # fmt: skip

    def best(self, caches: Sequence[LoadedCache]) -> dict[tuple[Source, DecisionKind], Match]:
        return best_by_kind(
            candidates(self.spec, self.problem, self.target, caches, deterministic=self.deterministic)
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Place:
    """A place where a tuned cache may be, and what was found there."""

    file: CacheFile
    loaded: LoadedCache | None
    finding: str

    @classmethod
    def look_into(cls, file: CacheFile, store: TunedCacheStore, spec: AttentionSpec) -> _Place:
        try:
            cache = store.read(file)
        except FileNotFoundError:
            return cls(file, None, "there is none")
        except CacheRefused as refused:
            return cls(file, None, f"refused: {refused.reason}")
        of_spec = sum(entry.spec == spec for entry in cache.entries)
        return cls(file, LoadedCache(file.path, file.origin, cache), f"read, {of_spec} entries for {spec.name}")


def _print_explanation(call: _Call, store: TunedCacheStore, kernels: Kernels) -> None:
    spec, problem, target = call.spec, call.problem, call.target
    places = [_Place.look_into(file, store, spec) for file in store.places(target)]
    caches = [place.loaded for place in places if place.loaded is not None]
    decision = call.decide(caches)
    console = Console(soft_wrap=True, highlight=False)
    sizes = ", ".join(f"{field} {getattr(problem, field)}" for field in problem.__struct_fields__)
    facts = f"{target.sm_count} SMs, {target.shared_memory} bytes of shared memory a block"
    _print_fields(
        console,
        [
            ("spec", spec.name),
            ("problem", sizes),
            ("bucket", Bucket.of(problem).name),
            ("target", f"{target.slug}: {facts}"),
        ],
    )
    _print_fields(console, [(place.file.origin, f"{place.file.path}: {place.finding}") for place in places], "Caches")
    _print_fields(console, _steps(call, caches, decision), "Look-up: the first that is found")
    config = ", ".join(f"{name}={value}" for name, value in fields_of(decision.variant.config).items())
    found = [("decision", f"{decision.kind}: {decision.reason}"), ("cache", decision.cache_path or "none")]
    kernel = [("config", config), ("variant", decision.variant.name), ("kernel", _kernel(decision.variant, kernels))]
    fallback = _fallback(call, caches, decision)
    _print_fields(console, [*found, *kernel, *fallback], "Decision")


def _fallback(call: _Call, caches: Sequence[LoadedCache], decision: Decision) -> Iterable[tuple[str, object]]:
    """What runs where the schedule decided upon cannot take a call's layout, which only the call itself shows."""
    layouts = decision.variant.definition.layouts_refused
    if layouts is not None:
        instead = call.decide(caches, (decision.variant.schedule,))
        yield "otherwise", f"for {layouts}: {instead.variant.name} ({instead.kind}: {instead.reason})"


def _steps(call: _Call, caches: Sequence[LoadedCache], decision: Decision) -> Iterable[tuple[str, object]]:
    """Each step of the look-up up to the one that decides."""
    best = call.best(caches)
    for source in Source:
        for kind in (DecisionKind.EXACT, DecisionKind.BUCKET, DecisionKind.NEAREST):
            match = best.get((source, kind))
            found = "no" if match is None else f"yes, {match.entry.config.name} on {match.entry.bucket.name}"
            yield f"{source}, {kind}", found
            if match is not None:
                return
    yield "default", f"yes, {decision.variant.config.name}"


def _kernel(variant: Variant, kernels: Kernels) -> str:
    try:
        kernels.check_generated(variant.spec)
    except KernelNotGeneratedError as error:
        return str(error)
    source = kernels.source(variant)
    return (
        f"rendered from the installed templates on demand ({variant.path})"
        if source.path is None
        else f"{source.path} ({source.origin})"
    )


def _print_fields(console: Console, fields: Iterable[tuple[str, object]], title: str | None = None) -> None:
    if title is not None:
        console.print(f"\n{title}", style="underline")
    for name, value in fields:
        console.print(f"{name:<20}", style="bold", end="")
        console.print(str(value), markup=False)

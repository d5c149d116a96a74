"""Compares the best few of a search with what is in office, and says what to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from statistics import median

from attnforge.cache.schema import Source, TunedEntry
from attnforge.cache.store import LoadedCache, Origin
from attnforge.codegen import Variant
from attnforge.compilation import Failure, VariantData
from attnforge.dispatch.decision import Decision, DecisionKind, decide
from attnforge.operations import operations
from attnforge.problem import Bucket, Problem
from attnforge.tuner.accuracy import gate_cases
from attnforge.tuner.comparer import Comparer
from attnforge.tuner.comparison import winner
from attnforge.tuner.compile_cases import sizes_of
from attnforge.tuner.messages import Accurate, CheckNumerics, Compare, Comparison
from attnforge.tuner.noise import noise
from attnforge.tuner.progress import Phase
from attnforge.tuner.resources import Resources
from attnforge.tuner.result import ProblemResult, Verdict
from attnforge.tuner.spec_search import SpecSearch


@dataclass(frozen=True, slots=True)
class Compared:
    """Configs that took turns on a problem, the reference first."""

    variants: tuple[Variant, ...]
    comparisons: tuple[Comparison, ...]
    """By worker."""

    @property
    def rounds_ms(self) -> dict[Variant, tuple[tuple[float, ...], ...]]:
        """Each config's milliseconds, by worker and round."""
        by_worker = zip(*(comparison.rounds_ms for comparison in self.comparisons), strict=True)
        return dict(zip(self.variants, by_worker, strict=True))


class Chooser:
    """What to write for each problem of one spec."""

    def __init__(self, search: SpecSearch, resources: Resources, comparer: Comparer) -> None:
        self._search = search
        self._resources = resources
        self._comparer = comparer
        self._gated: dict[Variant, Accurate | Failure] = {}
        self._caches: tuple[LoadedCache, ...] = ()
        self.in_office: dict[Problem, Decision] = {}
        """What runs now, by problem."""
        self._look_at(resources.caches)

    def look_again(self) -> None:
        """See what other tunes have written meanwhile."""
        self._look_at(self._resources.read_caches())

    def is_settled(self, problem: Problem) -> bool:
        """Whether an earlier comparison of all that was tried chose what runs, on this machine."""
        decision, study = self.in_office[problem], self._search.studies[problem]
        own = {loaded.path for loaded in self._caches if loaded.origin is Origin.USER}
        return (
            decision.kind is DecisionKind.EXACT
            and decision.entry is not None
            and decision.cache_path in own
            and study.confirmed_trials(decision.entry) == len(study.outcomes)
        )

    async def choose(self) -> list[ProblemResult]:
        """Compare the best few on every problem, and choose. Nothing is written yet."""
        finalists = {
            problem: tuple(self._search.finalists(problem, self.in_office[problem].variant))
            for problem in self._search.problems
        }
        compared = await self._compared({problem: of for problem, of in finalists.items() if of})
        return [await self._chosen(problem, compared.get(problem)) for problem in finalists]

    async def _compared(self, finalists: Mapping[Problem, tuple[Variant, ...]]) -> dict[Problem, Compared | Failure]:
        """Where a comparison fails, those are compared that can be timed alone: one of them may bring workers down."""
        found = dict(zip(finalists, await self._ask(list(finalists.items())), strict=True))
        for problem, reply in found.items():
            if isinstance(reply, Failure):
                self._comparer.expect()
                alone = await self._ask([(problem, (variant,)) for variant in finalists[problem]])
                left = tuple(each.variants[0] for each in alone if isinstance(each, Compared))
                if left and left != finalists[problem]:
                    self._comparer.expect()
                    (found[problem],) = await self._ask([(problem, left)])
        return found

    async def _ask(self, contests: Sequence[tuple[Problem, tuple[Variant, ...]]]) -> list[Compared | Failure]:
        seed = self._resources.effort.seed
        requests = [Compare(tuple(map(VariantData.of, variants)), problem, seed) for problem, variants in contests]
        replies = await self._comparer.compare(requests)
        return [
            reply if isinstance(reply, Failure) else Compared(variants, reply)
            for (_, variants), reply in zip(contests, replies, strict=True)
        ]

    async def _chosen(self, problem: Problem, compared: Compared | Failure | None) -> ProblemResult:
        """The first winner that passes the whole accuracy gate."""
        if compared is None:
            return ProblemResult(problem, Verdict.NOTHING_VALID, None, self._why_nothing_ran(problem))
        if isinstance(compared, Failure):
            return ProblemResult(problem, Verdict.NOT_COMPARED, None, f"{compared.kind}: {compared.message}")
        times = compared.rounds_ms
        default = times.get(self._search.default)
        reasons = []
        while times:
            chosen = list(times)[winner(list(zip(*times.values(), strict=True)))]
            verdict = await self._gate(chosen)
            if isinstance(verdict, Accurate):
                default_ms = None if default is None else _median_of_all(default)
                return self._written_unless_noisy(problem, chosen, _median_of_all(times[chosen]), default_ms, compared)
            reasons.append(f"{chosen.schedule}/{chosen.config.name}: {verdict.kind}: {verdict.message}")
            del times[chosen]
        return ProblemResult(problem, Verdict.NOTHING_VALID, None, "; ".join(reasons))

    def _written_unless_noisy(
        self, problem: Problem, chosen: Variant, ms: float, default_ms: float | None, compared: Compared
    ) -> ProblemResult:
        """A noisy comparison does not overwrite what a tune has measured before, and counts as none."""
        self.look_again()
        conditions = tuple(each.conditions for each in compared.comparisons if each.conditions is not None)
        disturbed = noise(conditions, [each.rounds_ms for each in compared.comparisons])
        known = (self._measured_before(problem), self.in_office[problem].entry)
        in_office = max((each for each in known if each is not None), key=lambda each: each.created, default=None)
        if disturbed and in_office is not None and _was_compared_on(in_office, problem):
            return ProblemResult(problem, Verdict.NOISY, in_office, noise=disturbed)
        entry = TunedEntry(
            spec=chosen.spec,
            problem=problem,
            bucket=Bucket.of(problem),
            schedule=chosen.schedule,
            config=chosen.config,
            source=Source.MEASURED,
            median_ms=ms,
            default_ms=default_ms,
            tflops=operations(chosen.spec, problem) / ms * 1e-9,
            gain=None if default_ms is None else default_ms / ms,
            trials=len(self._search.studies[problem].outcomes),
            created=_after(in_office),
            toolchain=self._resources.versions.toolchain(chosen.schedule, chosen.spec.pass_),
            conditions=conditions or None,
            noise=disturbed,
        )
        return ProblemResult(problem, Verdict.CHOSEN, entry, noise=disturbed)

    def _measured_before(self, problem: Problem) -> TunedEntry | None:
        """The newest measured entry, of whatever schedule, that a new one would take the place of."""
        toolchain, bucket = self._resources.versions.toolchain, Bucket.of(problem)
        found = [
            each
            for loaded in self._caches
            for each in loaded.cache.entries
            if each.source is Source.MEASURED
            and (each.spec, each.bucket) == (self._search.spec, bucket)
            and not each.toolchain.differences(toolchain(each.schedule, each.spec.pass_))
        ]
        return max(found, key=lambda each: each.created, default=None)

    async def _gate(self, variant: Variant) -> Accurate | Failure:
        """The whole accuracy gate, once a config."""
        if variant not in self._gated:
            with self._resources.progress.during(self._search.spec, Phase.CHECKING):
                self._gated[variant] = await self._check(variant)
        return self._gated[variant]

    async def _check(self, variant: Variant) -> Accurate | Failure:
        """Compiles ahead: the gate's cases have tails, which the search's problems may not have."""
        dtype = self._search.problems[0].dtype
        compiled = await self._resources.compile(variant, [sizes_of(case) for case in gate_cases(variant.spec, dtype)])
        if isinstance(compiled, Failure):
            return compiled
        return await self._resources.devices.check(CheckNumerics(VariantData.of(variant), dtype))

    def _why_nothing_ran(self, problem: Problem) -> str:
        outcomes = self._search.studies[problem].outcomes
        outcome = outcomes.get(self._search.default)
        default = f"; the default: {outcome.kind}: {outcome.message}" if isinstance(outcome, Failure) else ""
        return f"none of {len(outcomes)} configs ran{default}"

    def _look_at(self, caches: tuple[LoadedCache, ...]) -> None:
        self._caches = caches
        target = self._resources.target
        self.in_office = {each: decide(self._search.spec, each, target, caches) for each in self._search.problems}


def _was_compared_on(entry: TunedEntry, problem: Problem) -> bool:
    """Whether a tune has measured it for the problem's bucket, with whatever templates."""
    return entry.source is Source.MEASURED and entry.bucket == Bucket.of(problem)


def _median_of_all(rounds_ms: Sequence[Sequence[float]]) -> float:
    """Over the rounds of all workers."""
    return median(chain.from_iterable(rounds_ms))


def _after(earlier: TunedEntry | None) -> datetime:
    """Now; but later than what a new entry takes the place of, whatever the clock was that dated that one."""
    now = datetime.now(UTC)
    return now if earlier is None else max(now, earlier.created + timedelta(microseconds=1))

"""Tunes one spec: searches, puts the best parts together, compares the best few, and says what to write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from statistics import median

from msgspec import structs

from attnforge.cache.schema import Source, TunedEntry, Versions
from attnforge.cache.store import LoadedCache
from attnforge.codegen import Variant, default_config
from attnforge.compilation import CompilePool, CompileReport, Failure, FailureKind, VariantData
from attnforge.dispatch.decision import DecisionKind, decide, matches
from attnforge.operations import operations
from attnforge.problem import Bucket, Problem
from attnforge.target import Target
from attnforge.tuner.accuracy import gate_cases
from attnforge.tuner.comparer import Comparer
from attnforge.tuner.comparison import winner
from attnforge.tuner.compile_cases import sizes_of, unlike
from attnforge.tuner.devices import Devices
from attnforge.tuner.effort import Effort
from attnforge.tuner.messages import Accurate, CheckNumerics, Compare, Comparison, Measure
from attnforge.tuner.noise import noise
from attnforge.tuner.offer import offer
from attnforge.tuner.progress import Phase, TuneProgress, standing_of
from attnforge.tuner.ranking import predictors
from attnforge.tuner.result import ProblemResult, SpecResult, Verdict
from attnforge.tuner.spec_search import SpecSearch
from attnforge.tuner.study import Studies
from attnforge.tuner.task import Task
from attnforge.tuner.trial import Outcome

MOST_NEIGHBOURS = 3
"""Configs of other buckets' entries to try early."""
POLL_S = 0.5
"""Between two looks at what other tuners do, when nothing else is left to do."""


@dataclass(frozen=True)
class Resources:
    """What the specs of a tune share."""

    devices: Devices
    comparers: Sequence[Comparer]
    """One for each device."""
    pool: CompilePool
    target: Target
    versions: Versions
    studies: Studies
    caches: tuple[LoadedCache, ...]
    """The target's tuned caches as they were when the tune began."""
    progress: TuneProgress
    effort: Effort
    lanes: int
    """Configs of one spec that are under way at a time: its share of the compilers, or of the devices where these are
    more. With more no worker would ever wait, but proposals know less: eight under way take 18 trials to where five
    take 17 (tests/tuner/replay_tune.py)."""


class SpecTuner:
    """One spec on its problems."""

    def __init__(self, task: Task, resources: Resources, place: int = 0) -> None:
        """``place`` is the task's among all: specs take turns with the devices that they compare on."""
        spec, target, effort = task.spec, resources.target, resources.effort
        dtype = task.problems[0].dtype
        self._resources = resources
        self._dtype = dtype
        self._comparer = resources.comparers[place % len(resources.comparers)]
        self.offer = offer(spec, dtype, target.limits, effort.quick, effort.schedules)
        self._gated: dict[Variant, Accurate | Failure] = {}
        self._noisy: set[Problem] = set()
        self._has_result = asyncio.Event()
        self._ended_early = False
        self._in_office = {problem: decide(spec, problem, target, resources.caches) for problem in task.problems}
        first = [
            Variant(spec, *default_config(spec, dtype, target.limits)),
            *(space.variant(space.default) for space in self.offer.spaces.values()),
            *(decision.variant for decision in self._in_office.values()),
            *(variant for variant in _neighbours(task, resources.caches) if variant.schedule in self.offer.spaces),
        ]
        self.search = SpecSearch(
            self.offer.spaces,
            {problem: resources.studies.study(spec, problem, resources.versions) for problem in task.problems},
            list(dict.fromkeys(first)),
            effort.trials,
            effort.seed,
            effort.strategy,
            {problem: predictors(self.offer.spaces, problem, target) for problem in task.problems},
        )

    async def tune(self, has_time: Callable[[], bool]) -> SpecResult:
        """Search until the trials are spent or ``has_time`` says no, then compare. Nothing is written yet."""
        if not self.offer.spaces:
            return SpecResult(self.search.spec, tuple(map(self._not_offered, self.search.problems)), trials=0)
        if self.is_done:
            return self._result([self._kept(problem) for problem in self.search.problems])
        self._resources.progress.started(standing_of(self.search))
        self._comparer.expect()
        await asyncio.gather(*(self._search(has_time) for _ in range(self._resources.lanes)))
        self._ended_early = not has_time() and not self.search.is_complete
        await asyncio.gather(*(self._try(each) for each in self.search.recombined() if self.search.claim(each)))
        await self._others(has_time)
        with self._during(Phase.COMPARING):
            return self._result(await self._choose_all())

    def confirm(self) -> None:
        """Note that what tune() chose has been written, but for what is to be compared again."""
        for problem, study in self.search.studies.items():
            # Where an earlier run tried other schedules, what it found may not have been compared.
            if problem not in self._noisy and all(variant.schedule in self.offer.spaces for variant in study.outcomes):
                study.confirm()

    @property
    def is_done(self) -> bool:
        """Whether an earlier run finished every trial, and what it chose still is what runs."""
        return self.search.is_complete and all(
            study.confirmed_trials == len(study.outcomes) and self._in_office[problem].kind is DecisionKind.EXACT
            for problem, study in self.search.studies.items()
        )

    async def _search(self, has_time: Callable[[], bool]) -> None:
        """Try one config after another; the default, which comes first, whatever the time."""
        while has_time() or not self.search.has_begun:
            variant = self.search.propose()
            if variant is not None:
                await self._try(variant)
            elif self.search.is_trying or self.search.waits_for_others():
                await self._next_result()
            else:
                return

    async def _next_result(self) -> None:
        """Wait for the next of this tuner's results, after which something may be worth trying, or POLL_S."""
        with suppress(TimeoutError), self._during(Phase.WAITING):
            await asyncio.wait_for(self._has_result.wait(), POLL_S)

    async def _others(self, has_time: Callable[[], bool]) -> None:
        """Wait for what other tuners still try: it may be the best."""
        with self._during(Phase.WAITING):
            while has_time() and self.search.waits_for_others():
                await asyncio.sleep(POLL_S)

    async def _try(self, variant: Variant) -> None:
        """One config on every problem. Once it has failed it has failed on the longer problems too."""
        problems = self.search.to_try(variant)
        with self._during(Phase.COMPILING):
            outcome: CompileReport | Outcome = await self._compile(variant, problems)
        for problem in problems:
            if not isinstance(outcome, Failure):
                best_ms = self.search.best_kernel_ms(problem, variant)
                with self._during(Phase.MEASURING):
                    outcome = await self._resources.devices.measure(Measure(VariantData.of(variant), problem, best_ms))
            self.search.record(variant, problem, outcome)
            self._resources.progress.tried(standing_of(self.search))
        self._has_result.set()
        self._has_result = asyncio.Event()

    async def _compile(self, variant: Variant, problems: Iterable[Problem]) -> CompileReport | Failure:
        """Compile what the problems will launch, each different kernel once; the first failure, if any."""
        target = self._resources.target
        violated = variant.definition.violations(variant.spec, variant.config, self._dtype, target.limits)
        if variant != self.search.default and violated:
            return Failure(FailureKind.INVALID, f"excluded: {'; '.join(violated)}")
        submitted = (self._resources.pool.submit(variant, problem, target) for problem in unlike(problems))
        outcomes = await asyncio.gather(*map(asyncio.wrap_future, submitted))
        return next((outcome for outcome in outcomes if isinstance(outcome, Failure)), outcomes[0])

    async def _choose_all(self) -> list[ProblemResult]:
        """Compare the best few on every problem, and choose."""
        finalists = {
            problem: self.search.finalists(problem, self._in_office[problem].variant)
            for problem in self.search.problems
        }
        requests = [
            Compare(tuple(map(VariantData.of, variants)), problem, self._resources.effort.seed)
            for problem, variants in finalists.items()
            if variants
        ]
        comparisons = await self._comparer.compare(requests)
        replies = {request.problem: reply for request, reply in zip(requests, comparisons, strict=True)}
        return [
            await self._choose(problem, variants, replies[problem])
            if variants
            else ProblemResult(problem, Verdict.NOTHING_VALID, None, self._why_nothing_ran(problem))
            for problem, variants in finalists.items()
        ]

    async def _choose(
        self, problem: Problem, finalists: list[Variant], comparisons: tuple[Comparison, ...] | Failure
    ) -> ProblemResult:
        """The first winner that passes the whole accuracy gate."""
        if isinstance(comparisons, Failure):
            return ProblemResult(problem, Verdict.NOTHING_VALID, None, f"no comparison: {comparisons.message}")
        by_worker = zip(*(comparison.rounds_ms for comparison in comparisons), strict=True)
        times = dict(zip(finalists, by_worker, strict=True))
        default_ms = _median_of_all(times[self.search.default]) if self.search.default in times else None
        reasons = []
        while times:
            chosen = list(times)[winner(list(zip(*times.values(), strict=True)))]
            verdict = await self._gate(chosen)
            if isinstance(verdict, Accurate):
                entry = self._entry(problem, chosen, _median_of_all(times[chosen]), default_ms)
                return self._written_unless_noisy(entry, comparisons)
            reasons.append(f"{chosen.schedule}/{chosen.config.name}: {verdict.kind}: {verdict.message}")
            del times[chosen]
        return ProblemResult(problem, Verdict.NOTHING_VALID, None, "; ".join(reasons))

    def _written_unless_noisy(self, entry: TunedEntry, comparisons: tuple[Comparison, ...]) -> ProblemResult:
        """A noisy comparison does not overwrite what a tune has measured before, and counts as none."""
        conditions = tuple(each.conditions for each in comparisons if each.conditions is not None)
        entry = structs.replace(entry, conditions=conditions or None)
        disturbed = noise(conditions, [each.rounds_ms for each in comparisons])
        if disturbed:
            self._noisy.add(entry.problem)
            in_office = self._measured_before(entry)
            if in_office is not None:
                return ProblemResult(entry.problem, Verdict.NOISY, in_office, noise=disturbed)
        return ProblemResult(entry.problem, Verdict.CHOSEN, entry, noise=disturbed)

    def _measured_before(self, entry: TunedEntry) -> TunedEntry | None:
        """The newest measured entry, of whatever schedule, that a new one would take the place of."""
        known = chain.from_iterable(loaded.cache.entries for loaded in self._resources.caches)
        measured = (each for each in known if each.source is Source.MEASURED)
        found = (each for each in measured if (each.spec, each.bucket) == (entry.spec, entry.bucket))
        toolchain = self._resources.versions.toolchain
        current = [e for e in found if not e.toolchain.differences(toolchain(e.schedule, e.spec.pass_))]
        return max(current, key=lambda each: each.created, default=None)

    async def _gate(self, variant: Variant) -> Accurate | Failure:
        """The whole accuracy gate, once a config."""
        if variant not in self._gated:
            with self._during(Phase.CHECKING):
                self._gated[variant] = await self._check(variant)
        return self._gated[variant]

    async def _check(self, variant: Variant) -> Accurate | Failure:
        """Compiles ahead: the gate's cases have tails, which the search's problems may not have."""
        compiled = await self._compile(variant, [sizes_of(case) for case in gate_cases(variant.spec, self._dtype)])
        if isinstance(compiled, Failure):
            return compiled
        return await self._resources.devices.check(CheckNumerics(VariantData.of(variant), self._dtype))

    def _entry(self, problem: Problem, variant: Variant, ms: float, default_ms: float | None) -> TunedEntry:
        return TunedEntry(
            spec=variant.spec,
            problem=problem,
            bucket=Bucket.of(problem),
            schedule=variant.schedule,
            config=variant.config,
            source=Source.MEASURED,
            median_ms=ms,
            default_ms=default_ms,
            tflops=operations(variant.spec, problem) / ms * 1e-9,
            gain=None if default_ms is None else default_ms / ms,
            trials=len(self.search.studies[problem].outcomes),
            created=datetime.now(UTC),
            toolchain=self._resources.versions.toolchain(variant.schedule, variant.spec.pass_),
        )

    def _why_nothing_ran(self, problem: Problem) -> str:
        outcomes = self.search.studies[problem].outcomes
        outcome = outcomes.get(self.search.default)
        default = f"; the default: {outcome.kind}: {outcome.message}" if isinstance(outcome, Failure) else ""
        return f"none of {len(outcomes)} configs ran{default}"

    def _not_offered(self, problem: Problem) -> ProblemResult:
        reasons = "; ".join(f"{schedule}: {reason}" for schedule, reason in self.offer.refused.items())
        return ProblemResult(problem, Verdict.NOTHING_VALID, None, f"no schedule to search ({reasons})")

    def _kept(self, problem: Problem) -> ProblemResult:
        return ProblemResult(problem, Verdict.KEPT, self._in_office[problem].entry)

    def _result(self, problems: list[ProblemResult]) -> SpecResult:
        search = self.search
        return SpecResult(search.spec, tuple(problems), search.finished, search.failures(), self._ended_early)

    def _during(self, phase: Phase) -> AbstractContextManager[None]:
        return self._resources.progress.during(self.search.spec, phase)


def _median_of_all(rounds_ms: Iterable[Iterable[float]]) -> float:
    """Over the rounds of all workers."""
    return median(chain.from_iterable(rounds_ms))


def _neighbours(task: Task, caches: tuple[LoadedCache, ...]) -> list[Variant]:
    """Configs that serve the spec's nearest other buckets."""
    found = (match for problem in task.problems for match in matches(task.spec, problem, caches))
    nearest = sorted(found, key=lambda match: match.distance)
    return list(dict.fromkeys(match.entry.variant for match in nearest))[:MOST_NEIGHBOURS]

"""Tunes one spec: searches, puts the best parts together, and has the best few compared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress

from attnforge.cache.store import LoadedCache
from attnforge.codegen import Variant, default_config
from attnforge.compilation import CompileReport, Failure, FailureKind, VariantData
from attnforge.dispatch.decision import decide, matches
from attnforge.problem import Problem
from attnforge.tuner.chooser import Chooser
from attnforge.tuner.messages import Measure
from attnforge.tuner.offer import offer
from attnforge.tuner.progress import Phase, standing_of
from attnforge.tuner.ranking import predictors
from attnforge.tuner.resources import Resources
from attnforge.tuner.result import ProblemResult, SpecResult, Verdict
from attnforge.tuner.spec_search import SpecSearch
from attnforge.tuner.task import Task
from attnforge.tuner.trial import Outcome

MOST_NEIGHBOURS = 3
"""Configs of other buckets' entries to try early."""
POLL_S = 0.5
"""Between two looks at what other tuners do, when nothing else is left to do."""


class SpecTuner:
    """One spec on its problems."""

    def __init__(self, task: Task, resources: Resources, place: int = 0) -> None:
        """``place`` is the task's among all: specs take turns with the devices that they compare on."""
        spec, target, effort = task.spec, resources.target, resources.effort
        dtype = task.problems[0].dtype
        self._resources = resources
        self._comparer = resources.comparers[place % len(resources.comparers)]
        self.offer = offer(spec, dtype, target.limits, effort.quick, effort.schedules)
        self._has_result = asyncio.Event()
        self._ended_early = False
        in_office = [decide(spec, problem, target, resources.caches).variant for problem in task.problems]
        first = [
            Variant(spec, *default_config(spec, dtype, target.limits)),
            *(space.variant(space.default) for space in self.offer.spaces.values()),
            *in_office,
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
        self._chooser = Chooser(self.search, resources, self._comparer)

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
        await self._try_all(self.search.recombined())
        await self._others(has_time)
        self._chooser.look_again()
        await self._try_all(decision.variant for decision in self._chooser.in_office.values())
        with self._during(Phase.COMPARING):
            return self._result(await self._chooser.choose())

    def confirm(self, result: SpecResult) -> None:
        """Note that what tune() chose has been written, but for what is to be compared again."""
        for each in result.problems:
            study = self.search.studies[each.problem]
            # Where an earlier run tried other schedules, what it found may not have been compared.
            standing = (self.search.default, self._chooser.in_office[each.problem].variant)
            was_all_compared = all(
                variant.schedule in self.offer.spaces or variant in standing for variant in study.outcomes
            )
            if each.verdict is Verdict.CHOSEN and each.entry is not None and not each.noise and was_all_compared:
                study.confirm(each.entry)

    @property
    def is_done(self) -> bool:
        """Whether an earlier run finished every trial, and what it chose still is what runs."""
        return self.search.is_complete and all(map(self._chooser.is_settled, self.search.problems))

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
        """Wait for what other tuners still try, for it may be the best; what they leave behind is tried here."""
        while has_time() and self.search.waits_for_others():
            left = self.search.propose()
            if left is None:
                with self._during(Phase.WAITING):
                    await asyncio.sleep(POLL_S)
            else:
                await self._try(left)

    async def _try_all(self, variants: Iterable[Variant]) -> None:
        """Those that are this tuner's to try, at once."""
        claimed = [variant for variant in dict.fromkeys(variants) if self.search.claim(variant)]
        await asyncio.gather(*map(self._try, claimed))

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
        """Compile what the problems will launch, unless constraints exclude it; the default is tried all the same."""
        limits, dtype = self._resources.target.limits, self.search.problems[0].dtype
        violated = variant.definition.violations(variant.spec, variant.config, dtype, limits)
        if variant != self.search.default and violated:
            return Failure(FailureKind.INVALID, f"excluded: {'; '.join(violated)}")
        return await self._resources.compile(variant, problems)

    def _not_offered(self, problem: Problem) -> ProblemResult:
        reasons = "; ".join(f"{schedule}: {reason}" for schedule, reason in self.offer.refused.items())
        return ProblemResult(problem, Verdict.NOTHING_VALID, None, f"no schedule to search ({reasons})")

    def _kept(self, problem: Problem) -> ProblemResult:
        return ProblemResult(problem, Verdict.KEPT, self._chooser.in_office[problem].entry)

    def _result(self, problems: list[ProblemResult]) -> SpecResult:
        search = self.search
        return SpecResult(search.spec, tuple(problems), search.finished, search.failures(), self._ended_early)

    def _during(self, phase: Phase) -> AbstractContextManager[None]:
        return self._resources.progress.during(self.search.spec, phase)


def _neighbours(task: Task, caches: tuple[LoadedCache, ...]) -> list[Variant]:
    """Configs that serve the spec's nearest other buckets."""
    found = (match for problem in task.problems for match in matches(task.spec, problem, caches))
    nearest = sorted(found, key=lambda match: match.distance)
    return list(dict.fromkeys(match.entry.variant for match in nearest))[:MOST_NEIGHBOURS]

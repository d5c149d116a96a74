"""``attnforge tune``: the fastest configs, measured on this GPU or predicted for another."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from math import ceil
from shlex import quote
from typing import NoReturn

import typer
from rich.console import Console

from attnforge.cache.store import TunedCacheStore
from attnforge.cli import INTERRUPTED
from attnforge.cli.selection import (
    CausalOption,
    DTypeOption,
    HeadDimOption,
    HeadDimVOption,
    PassOption,
    SelectionError,
    selected_specs,
)
from attnforge.cli.tune_options import (
    BudgetOption,
    FreshOption,
    JobsOption,
    QuickOption,
    ScheduleOption,
    SeedOption,
    SeqlenOption,
    StorageOption,
    StrategyOption,
    TargetOption,
    TrialsOption,
)
from attnforge.codegen import AttentionSpec, DType, Schedule, schedules_of
from attnforge.compilation import CompilePool
from attnforge.errors import AttnforgeError
from attnforge.settings import Settings
from attnforge.shipping import default_variants, shipped_specs
from attnforge.target import Target
from attnforge.tuner.effort import Effort, cores
from attnforge.tuner.keeper import Keeper
from attnforge.tuner.measurer import INTERPRETER_WORKER, Deadlines, Measurer, interpreting_environment
from attnforge.tuner.offer import offer
from attnforge.tuner.prediction import is_predictable
from attnforge.tuner.prediction_session import PredictionSession
from attnforge.tuner.progress import progress_for
from attnforge.tuner.result import SpecResult
from attnforge.tuner.session import Session
from attnforge.tuner.storage import check_url, shown
from attnforge.tuner.strategy import StrategyName
from attnforge.tuner.summary import summary
from attnforge.tuner.task import Task, tasks
from attnforge.users_kernels import write_users_kernels
from attnforge.wording import counted

SEQLENS = (1024, 4096, 16384)
QUICK_SEQLENS = (4096,)
QUICK_HEAD_DIMS = (64, 128)
"""What --target --quick predicts: the common ones."""
TRIALS, QUICK_TRIALS = 32, 10
BUDGET_S, QUICK_BUDGET_S = 7 * 60.0, 3 * 60.0
COMPILATIONS, QUICK_COMPILATIONS = 16, 5
COMPILE_DEADLINE_S = 60.0
"""Three times what the slowest shipped variant takes; a compiler that never ends must not outlast the budget."""
INTERPRETING = Deadlines(check=600.0)
"""Seconds: the largest tiles take a minute on a busy core."""


class NothingWrittenError(AttnforgeError):
    """Of some specs no config is valid, or none could be compared; older entries stay."""

    def __init__(self, results: Sequence[SpecResult]) -> None:
        named = [
            f"{result.spec.name} (seqlen {each.problem.seqlen_q}, {each.verdict}: {each.reason})"
            for result in results
            for each in result.problems
            if each.entry is None
        ]
        super().__init__(f"nothing was written for {'; '.join(named)}")


def tune(
    head_dim: HeadDimOption = None,
    head_dim_v: HeadDimVOption = None,
    causal: CausalOption = None,
    pass_: PassOption = None,
    seqlen: SeqlenOption = None,
    dtype: DTypeOption = DType.BF16,
    target: TargetOption = None,
    quick: QuickOption = False,
    trials: TrialsOption = None,
    budget: BudgetOption = None,
    jobs: JobsOption = None,
    schedule: ScheduleOption = None,
    strategy: StrategyOption = StrategyName.GAUSSIAN,
    seed: SeedOption = 0,
    fresh: FreshOption = False,
    storage: StorageOption = None,
) -> None:
    """Find the fastest config of each kernel, and keep it where attention() looks.

    Without options: all shipped head dims, causal and not, forward and backward,
    on this machine's GPU, in about 8 minutes. Every config is compiled, checked
    for accuracy and timed in processes of their own: one that crashes or hangs
    costs a trial. The best are compared with the default before one is kept.

    Ctrl-C is safe: what is done is written, finished trials are kept, and the
    same command goes on from there. With --target what is done is written too,
    and the same command starts over.

    attnforge tune --head-dim 128 --causal    two kernels, in under a minute\n
    attnforge tune --head-dim 72              a size that is not shipped\n
    attnforge tune --target sm_80 --quick     no GPU: predict\n
    attnforge tune --storage postgresql://me@host/db    together with others
    """
    if storage:
        check_url(storage)
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=160)
    settings = Settings.from_environment()
    specs = selected_specs(head_dim, head_dim_v, causal, pass_)
    if quick and target is not None and not head_dim:
        specs = tuple(spec for spec in specs if spec.head_dim in QUICK_HEAD_DIMS)
    specs = _with_schedules(specs, schedule)
    todo = tasks(specs, seqlen or (QUICK_SEQLENS if quick else SEQLENS), dtype)
    effort = Effort(
        trials=trials or _default_trials(strategy, quick),
        budget_s=budget or (QUICK_BUDGET_S if quick else BUDGET_S),
        quick=quick,
        jobs=jobs or (cores() if target else max(1, cores() - 1)),
        schedules=tuple(dict.fromkeys(schedule or ())),
        strategy=strategy,
        seed=seed,
    )
    if fresh and storage:
        raise SelectionError("--fresh would forget the trials of all who share --storage: name a new database instead")
    if target is None:
        _measure(todo, effort, fresh, storage, settings, console)
        return
    of_measuring = {
        "--fresh": fresh,
        "--budget": budget,
        "--schedule": schedule,
        "--storage": storage,
        "--strategy": strategy is not StrategyName.GAUSSIAN,
    }
    _refuse([option for option, given in of_measuring.items() if given])
    compilations = trials or (QUICK_COMPILATIONS if quick else COMPILATIONS)
    predicted = _predict(todo, Target.for_arch(target), compilations, effort.jobs, settings, console)
    if predicted and quick and not head_dim:
        _say(
            console,
            f"Left out: head dims other than {_listed(QUICK_HEAD_DIMS)}, sequence lengths other than"
            f" {_listed(QUICK_SEQLENS)}, configs that seldom win. For all of them: attnforge tune --target {target}",
        )


def _refuse(of_measuring: Sequence[str]) -> None:
    """Options that say nothing to a prediction."""
    if of_measuring:
        are, them = ("is", "it") if len(of_measuring) == 1 else ("are", "them")
        raise SelectionError(f"{_listed(of_measuring)} {are} about measuring: leave {them} out with --target")


def _with_schedules(specs: tuple[AttentionSpec, ...], wanted: list[Schedule] | None) -> tuple[AttentionSpec, ...]:
    """Those of specs that any of the wanted schedules has kernels of; whether the GPU can run them is known later."""
    if not wanted:
        return specs
    left = tuple(spec for spec in specs if any(each.schedule in wanted for each in schedules_of(spec.pass_)))
    if not left:
        passes = " and no ".join(dict.fromkeys(spec.pass_ for spec in specs))
        raise SelectionError(f"schedule {' or '.join(wanted)} has no {passes}")
    return left


def _default_trials(strategy: StrategyName, quick: bool) -> int:
    if strategy is StrategyName.EXHAUSTIVE:
        return sys.maxsize
    return QUICK_TRIALS if quick else TRIALS


def _measure(
    todo: list[Task], effort: Effort, fresh: bool, storage: str | None, settings: Settings, console: Console
) -> None:
    session = Session(
        tasks=todo,
        effort=effort,
        keeper=Keeper(settings, TunedCacheStore(settings)),
        measurer=Measurer(),
        pool=CompilePool(effort.jobs, COMPILE_DEADLINE_S),
        progress=progress_for(console, len(todo), effort.budget_s),
        fresh=fresh,
        storage=storage,
    )
    finished = session.run()
    trials = settings.studies_dir if storage is None else shown(storage)
    place = "" if storage is None else f" --storage {quote(shown(storage))}"
    _print_results(session.results, f"attnforge report{place}", settings, console)
    if not finished:
        rest = f"finished trials of the others are in {trials}. The same command goes on from there."
        _end_interrupted(session.results, todo, rest, console)
    early = sum(result.ended_early for result in session.results)
    if early or session.left:
        _say(console, out_of_time(early, len(session.left), len(todo), effort.budget_s))
    _fail_where_nothing_was_written(session.results)


def out_of_time(early: int, left: int, specs: int, budget_s: float) -> str:
    """What the budget cut short: ``early`` searches and ``left`` specs that had no turn, of all ``specs``."""
    ended = f"ended {early} of {counted(specs, 'search', 'searches')} early"
    waiting = f"left {left} of {counted(specs, 'spec')} without a turn"
    what = " and ".join([*([ended] if early else []), *([waiting] if left else [])])
    twice = 2 * budget_s
    more = f"{ceil(twice / 60)}m" if twice >= 120 else f"{ceil(twice)}s"
    return f"The budget {what}: the same command goes on with them, `--budget {more}` gives it more time."


def _predict(
    todo: list[Task], target: Target, compilations: int, jobs: int, settings: Settings, console: Console
) -> bool:
    """Whether there was anything to predict."""
    left = [task.spec for task in todo if not is_predictable(task, target)]
    todo = [task for task in todo if task.spec not in left]
    if left:
        _leave_to_defaults(left, target, settings, console)
    if not todo:
        return False
    if any(len(offer(task.spec, task.problems[0].dtype, target.limits).spaces) > 1 for task in todo):
        _say(console, "Predicting the portable schedule: others are tuned on the GPU itself.")
    environment = interpreting_environment(os.environ)
    session = PredictionSession(
        tasks=todo,
        target=target,
        keeper=Keeper(settings, TunedCacheStore(settings)),
        pool=CompilePool(jobs),
        interpreters=[Measurer(INTERPRETER_WORKER, environment, INTERPRETING) for _ in range(min(jobs, len(todo)))],
        progress=progress_for(console, len(todo), None),
        compilations=compilations,
    )
    finished = session.run()
    _print_results(session.results, f"attnforge report --target {target.slug}", settings, console)
    if not finished:
        rest = "of the others nothing is kept. The same command starts over."
        _end_interrupted(session.results, todo, rest, console)
    _fail_where_nothing_was_written(session.results)
    return True


def _leave_to_defaults(specs: list[AttentionSpec], target: Target, settings: Settings, console: Console) -> None:
    """Say of which specs nothing is predicted, and why; those that are not shipped get their kernels all the same."""
    _say(
        console,
        f"Not predicted, for on {target.arch} their default configs are of a schedule that only a tune on the GPU"
        f" itself can improve: {', '.join(spec.name for spec in specs)}",
    )
    new = [spec for spec in specs if spec not in shipped_specs()]
    if new:
        write_users_kernels(default_variants(new, [target]), settings.kernels_dir)
        _say(
            console,
            f"Generated, with their default configs: {', '.join(spec.name for spec in new)}; attention() uses them from"
            " now on.",
        )


def _print_results(results: Sequence[SpecResult], report: str, settings: Settings, console: Console) -> None:
    """The summary, and where the winners are; ``report`` is the command that shows them."""
    if results:
        console.print(summary(results))
    if any(result.entries for result in results):
        _say(console, f"Kept in {settings.tuned_dir}; attention() looks there first. `{report}` shows it as a page.")


def _end_interrupted(results: Sequence[SpecResult], todo: Sequence[Task], rest: str, console: Console) -> NoReturn:
    """``rest`` says what becomes of the specs that are not done."""
    done = f"{len(results)} of {counted(len(todo), 'spec')} {'is' if len(todo) == 1 else 'are'} done and written"
    _say(console, f"Interrupted: {done}; {rest}")
    raise typer.Exit(INTERRUPTED)


def _fail_where_nothing_was_written(results: Sequence[SpecResult]) -> None:
    if any(each.entry is None for result in results for each in result.problems):
        raise NothingWrittenError(results)


def _say(console: Console, line: str) -> None:
    """In a file or a pipe a line stays one."""
    console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _listed(values: Sequence[int | str]) -> str:
    """Such as 64, 128 and 256."""
    *others, last = map(str, values)
    return f"{', '.join(others)} and {last}" if others else last

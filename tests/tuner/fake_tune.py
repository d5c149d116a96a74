"""A whole tune on fakes; run by path, with a script's path and perhaps a storage's URL and a folder, to be killed."""

import sys
from pathlib import Path

from rich.console import Console

from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import AttentionSpec, DType, Pass, Schedule
from attnforge.compilation import CompilePool
from attnforge.settings import Settings
from attnforge.tuner.effort import Effort
from attnforge.tuner.keeper import Keeper
from attnforge.tuner.measurer import Deadlines, Measurer
from attnforge.tuner.progress import PlainProgress
from attnforge.tuner.session import Session
from attnforge.tuner.task import Task, tasks

sys.path.insert(0, str(Path(__file__).parents[2]))  # run by path

from tests.tuner.fake_device import Script

HERE = Path(__file__).parent
SPECS = [
    AttentionSpec(pass_=pass_, head_dim=32, head_dim_v=32, causal=causal) for pass_ in Pass for causal in (False, True)
]
TASKS = tasks(SPECS, (1024, 4096), DType.BF16)


def fake_command(program: str, script: Script) -> list[str]:
    return [sys.executable, str(HERE / program), str(script.write())]


def measurer_of(script: Script, measure_s: float = 4.0) -> Measurer:
    deadlines = Deadlines(measure=measure_s, compare=20.0, check=20.0)
    return Measurer(fake_command("fake_worker.py", script), deadlines=deadlines)


def session_of(
    script: Script,
    todo: list[Task],
    trials: int = 10,
    schedules: tuple[Schedule, ...] = (Schedule.PORTABLE,),
    cache: str = "cache",
    budget_s: float = 600.0,
    **options: object,
) -> Session:
    settings = Settings(Path(script.folder, cache))
    shipped = Path(script.folder, "shipped")
    return Session(
        tasks=todo,
        effort=Effort(trials=trials, budget_s=budget_s, jobs=2, schedules=schedules),
        keeper=Keeper(settings, TunedCacheStore(settings, shipped)),
        measurer=measurer_of(script),
        pool=CompilePool(1, deadline_s=4.0, command=fake_command("fake_compiler.py", script)),
        progress=PlainProgress(Console(file=sys.stderr), len(todo)),
        **options,
    )


if __name__ == "__main__":
    shared = {"storage": sys.argv[2], "cache": sys.argv[3]} if len(sys.argv) > 2 else {}
    finished = session_of(Script.read(sys.argv[1]), TASKS, **shared).run()
    sys.exit(0 if finished else 130)

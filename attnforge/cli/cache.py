"""``attnforge cache``: where tuned caches are, what they hold, whether they are accepted, how they are shared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from attnforge.cache.reader import read_users_cache
from attnforge.cache.schema import Entry, TunedCache
from attnforge.cache.store import CacheFile, TunedCacheStore
from attnforge.cli.cache_sharing import diff as diff
from attnforge.cli.cache_sharing import merge as merge
from attnforge.cli.cache_sharing import print_stale
from attnforge.errors import CacheRefused
from attnforge.settings import Settings
from attnforge.target import Target

TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="An arch such as sm_90, or a GPU that there is a cache of, such as sm_90-nvidia-h200; this machine's GPU"
        " when left out.",
    ),
]

NO_CACHES = "There is no tuned cache yet: run `attnforge tune`. Until then the default configs serve."


def path(target: TargetOption = None) -> None:
    """Print the file that a tune on the target writes and that is looked up first, whether it exists or not."""
    store = _store()
    typer.echo(store.path(Target.current() if target is None else store.target(target)))


def show(
    target: Annotated[
        str | None,
        typer.Option(
            "--target", help="Only the caches that serve a target, such as sm_90-nvidia-h200, in look-up order."
        ),
    ] = None,
) -> None:
    """Show the entries of your tuned caches and of the shipped ones."""
    store = _store()
    places = store.all_places() if target is None else store.places(store.target(target))
    found = False
    for place in places:
        try:
            cache = store.read(place)
        except FileNotFoundError:
            continue
        except CacheRefused as refused:
            typer.echo(refused, err=True)
        else:
            _print_cache(place, cache)
        found = True
    if not found:
        typer.echo(NO_CACHES)
        others = sorted({place.path.stem for place in store.all_places() if place not in places})
        if others:
            typer.echo(f"There are caches of other targets: {', '.join(others)}")


def verify(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files to verify; yours and the shipped ones when left out.")
    ] = None,
) -> None:
    """Check tuned caches as a look-up does: exits 1 when one is refused, and names the file and the reason."""
    store = _store()
    known = {place.path: place for place in store.all_places()}
    if not paths and not known:
        typer.echo(NO_CACHES)
    some_refused = False
    for file in paths or known:
        try:
            place = known.get(file.absolute())
            cache = store.read(place) if place else read_users_cache(file, root=file.parent)
        except FileNotFoundError:
            typer.echo(f"{file}: there is no such file", err=True)
            some_refused = True
        except CacheRefused as refused:
            typer.echo(refused, err=True)
            some_refused = True
        else:
            unfit = f", {len(cache.unfit)} of them for other templates alone" if cache.unfit else ""
            typer.echo(f"{file}: accepted, {len(cache.all_entries)} entries for {cache.target.slug}{unfit}")
    if some_refused:
        raise typer.Exit(1)


def _store() -> TunedCacheStore:
    return TunedCacheStore(Settings.from_environment())


def _print_cache(place: CacheFile, cache: TunedCache) -> None:
    typer.echo(f"{place.path} ({place.origin}, {len(cache.all_entries)} entries)")
    table = Table(box=SIMPLE)
    for column in ("spec", "bucket", "schedule/config", "source", "ms", "gain", "date"):
        table.add_column(column, overflow="fold", justify="right" if column in ("ms", "gain") else "left")
    for entry in cache.all_entries:
        table.add_row(*_row(entry))
    # Piped output has no terminal to fit into: wide enough for every row to stay on its line.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print_stale(cache.all_entries)


def _row(entry: Entry) -> tuple[str, ...]:
    return (
        entry.spec.name,
        entry.bucket.name,
        entry.title,
        f"{entry.source}, noisy" if entry.noise else entry.source,
        "" if entry.median_ms is None else f"{entry.median_ms:.4f}",
        "" if entry.gain is None else f"{entry.gain:.2f}x",
        f"{entry.created:%Y-%m-%d}",
    )

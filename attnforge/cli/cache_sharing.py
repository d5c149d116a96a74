"""``attnforge cache merge`` and ``attnforge cache diff``: tuned caches that other machines and people share."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnforge.cache.difference import COMPARED, CacheDifference, EntryDifference, difference
from attnforge.cache.merging import (
    THE_SAME,
    CacheNotFoundError,
    Change,
    MergedEntry,
    explain_merge,
    read_source,
    target_of,
)
from attnforge.cache.reader import read_to_look_at
from attnforge.cache.schema import Entry, TunedCache, UnfitEntry
from attnforge.cache.store import TunedCacheStore
from attnforge.errors import NoGpuError
from attnforge.settings import Settings
from attnforge.target import Target

STYLES = {Change.ADDED: "green", Change.REPLACED: "yellow", Change.KEPT: "dim"}


def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE", help="Tuned caches of one target.")],
    into: Annotated[
        Path | None,
        typer.Option("--into", help="The file to merge into, made where there is none. Your own cache when left out."),
    ] = None,
) -> None:
    """Merge tuned caches of other machines or teammates into yours.

    The rules are those of a tune: measured entries go before predicted ones, quiet
    before noisy, then the newer one; entries that another Triton or other templates
    found stand side by side. What becomes of each entry is said. When one of the
    files is refused, nothing is written.

    attnforge cache merge ~/h200.yaml                     a teammate's, into yours\n
    attnforge cache merge a.yaml b.yaml --into team.yaml  two machines', for a team
    """
    read = [read_source(path) for path in sources]
    target = target_of(read, _gpu() if into is None else None)
    store = TunedCacheStore(Settings.from_environment())
    path = into or store.path(target)
    existing = store.merge_into(path, target, [entry for source in read for entry in source.cache.all_entries])
    explained = explain_merge(existing, read)
    _print_merge(explained)
    counts = Counter(record.change for record in explained)
    typer.echo(f"{path}: " + ", ".join(f"{counts[change]} {change}" for change in Change))
    print_stale([record.offered for record in explained if record.change is not Change.KEPT])


def diff(
    a: Annotated[Path, typer.Argument(help="A tuned cache.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show how two tuned caches differ: exits 0 when they say the same, 1 when not, 2 when one cannot be read.

    Entries for the same spec and bucket are compared by config, times and what
    they were found with; their dates and trials may differ.
    """
    caches = _read(a), _read(b)
    found = difference(*caches)
    if as_json:
        typer.echo(json.dumps(_plain(found, (a, b), caches), indent=2))
    else:
        _print_difference(found, (a, b), caches)
    if not found.is_empty:
        raise typer.Exit(1)


def print_stale(entries: Iterable[Entry]) -> None:
    """Says which of ``entries`` were found with another Triton or other templates, and whether they serve."""
    stale = Counter((entry.differences, entry.reason if isinstance(entry, UnfitEntry) else None) for entry in entries)
    for (differences, unfit), count in stale.items():
        if differences:
            serve = "they serve, but not as exact" if unfit is None else f"they do not serve ({unfit})"
            typer.echo(f"  {count} of them found with {'; '.join(differences)}: {serve}\n")


def _gpu() -> Target | None:
    """This machine's; None without one: its owner merges for other machines."""
    try:
        return Target.current()
    except NoGpuError:
        return None


def _read(path: Path) -> TunedCache:
    try:
        return read_to_look_at(path)
    except FileNotFoundError as error:
        raise CacheNotFoundError(path) from error


def _console() -> Console:
    # Piped output has no terminal to fit into: wide enough for every row to stay on its line.
    return Console(width=None if sys.stdout.isatty() else 240)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def _ms(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "predicted"


def _gain(value: object) -> str:
    return f"{value:.2f}x" if isinstance(value, int | float) else ""


def _print_merge(explained: list[MergedEntry]) -> None:
    several = len({record.source for record in explained}) > 1
    table = _table("", "spec", "bucket", "schedule/config", "ms", "why", *(["source"] if several else []))
    same = sum(record.reason == THE_SAME for record in explained)
    for record in explained:
        if record.reason == THE_SAME:
            continue
        entry = record.offered
        cells = [entry.spec.name, entry.bucket.name, entry.title, _ms(entry.median_ms), record.reason]
        cells += [record.source.name] if several else []
        table.add_row(Text(record.change, style=STYLES[record.change]), *map(Text, cells))
    if same < len(explained):
        _console().print(table)
    if same:
        typer.echo(f"Already there, and the same: {same}.")


def _print_difference(found: CacheDifference, paths: tuple[Path, Path], caches: tuple[TunedCache, TunedCache]) -> None:
    console = _console()
    for letter, path, cache in zip("AB", paths, caches, strict=True):
        line = Text(f"{letter}: {path} ({cache.target.slug}, {len(cache.all_entries)} entries)")
        console.print(line, soft_wrap=True)
    if not found.same_target:
        console.print("The targets differ: each cache serves its own.", style="yellow")
    for letter, entries in (("A", found.only_in_a), ("B", found.only_in_b)):
        if entries:
            table = _table("spec", "bucket", "config", "ms", "gain")
            table.title, table.title_justify = f"Only in {letter}", "left"
            for entry in entries:
                cells = (entry.spec.name, entry.bucket.name, entry.title, _ms(entry.median_ms), _gain(entry.gain))
                table.add_row(*map(Text, cells))
            console.print(table)
    if found.different:
        table = _table("spec", "bucket", "what", "A", "B")
        table.title, table.title_justify = "Different", "left"
        for each in found.different:
            for place, row in enumerate(_rows(each)):
                name = (each.a.spec.name, each.a.bucket.name) if place == 0 else ("", "")
                table.add_row(*map(Text, (*name, *row)))
        console.print(table)
    typer.echo("The same in both." if found.is_empty else f"{found.same} entries are the same in both.")


def _rows(each: EntryDifference) -> list[tuple[str, str, str]]:
    """A row for each field; of configs the fields that differ."""
    rows = []
    for name, (one, other) in each.fields.items():
        if isinstance(one, dict) and isinstance(other, dict):
            differing = [key for key in one | other if one.get(key) != other.get(key)]
            rows += [(key, str(one.get(key, "")), str(other.get(key, ""))) for key in differing]
        else:
            shown = {"median_ms": _ms, "gain": _gain}.get(name, str)
            rows.append((name, shown(one), shown(other)))
    return rows


def _plain(found: CacheDifference, paths: tuple[Path, Path], caches: tuple[TunedCache, TunedCache]) -> dict[str, Any]:
    def entry(of: Entry) -> dict[str, Any]:
        return _name(of) | {name: value(of) for name, value in COMPARED.items()}

    sides = {
        letter: {"path": str(path), "target": cache.target.slug, "entries": len(cache.all_entries)}
        for letter, path, cache in zip("ab", paths, caches, strict=True)
    }
    return sides | {
        "same_target": found.same_target,
        "only_in_a": [entry(each) for each in found.only_in_a],
        "only_in_b": [entry(each) for each in found.only_in_b],
        "different": [
            _name(each.a) | {name: {"a": one, "b": other} for name, (one, other) in each.fields.items()}
            for each in found.different
        ],
        "same": found.same,
    }


def _name(entry: Entry) -> dict[str, str]:
    return {"spec": entry.spec.name, "bucket": entry.bucket.name}

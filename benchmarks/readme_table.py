"""Writes the README's speed section and picture from the newest committed run of `attnforge bench`.

    python benchmarks/readme_table.py            rewrite README.md and docs/speed.png
    python benchmarks/readme_table.py --check    exit 1 when README.md is not what the newest run says

A run is committed by `attnforge bench --out benchmarks/results/NAME`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from attnforge.bench.picture import draw_picture
from attnforge.bench.results import HOST_BAR_US, OURS, Cell, HostCost, Measurement, Results, read_results
from attnforge.bench.summary import compare

ROOT = Path(__file__).parents[1]
PICTURE = "docs/speed.png"
BEGIN = "<!-- speed: written by benchmarks/readme_table.py -->"
END = "<!-- /speed -->"


def newest_run() -> tuple[Path, Results]:
    """The committed run that was made last, and where it is."""
    runs = [(path, read_results(path)) for path in sorted((ROOT / "benchmarks" / "results").rglob("results.json"))]
    return max(runs, key=lambda run: run[1].created)


def _row(*columns: str) -> str:
    return f"| {' | '.join(columns)} |"


def _speed(cell: Cell, name: str) -> str:
    outcome = cell.outcomes.get(name)
    if not isinstance(outcome, Measurement):
        return "–"
    return f"**{outcome.tflops:.0f}**" if name == OURS else f"{outcome.tflops:.0f}"


def _summary(results: Results) -> Iterator[str]:
    yield _row("attnforge is …", "as fast as", "worst case", "in")
    yield "|---|---|---|---|"
    for each in compare(results):
        label = f"{results.implementations[each.peer]}, {each.pass_}"
        yield _row(f"**{each.mean_ratio:.2f} ×**", label, f"{each.worst_ratio:.2f} ×", each.worst_cell)


def _cells(results: Results) -> Iterator[str]:
    labels = list(results.implementations.values())
    yield _row("pass", "head dim", "mask", "tokens", *labels)
    yield "|" + "---|" * (4 + len(labels))
    for pass_ in results.passes():
        for cell in (cell for cell in results.cells if cell.pass_ is pass_):
            mask = "causal" if cell.causal else "full"
            speeds = (_speed(cell, name) for name in results.implementations)
            yield _row(str(pass_), str(cell.head_dim), mask, str(cell.seqlen), *speeds)


def section(path: str, results: Results) -> str:
    """What stands between the markers: the picture, the geometric means, every cell, the host cost, the source."""
    environment = results.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items() if name != "attnforge")
    lines = [f"![TFLOP/s of attnforge and its peers]({PICTURE})", "", *_summary(results), ""]
    if isinstance(cost := results.host_cost, HostCost):
        lines += [
            f"A small call costs {cost.dispatched_us:.0f} µs of host time, {cost.overhead_us:.0f} µs more than a bare "
            f"launch of the same kernel (bar: {HOST_BAR_US:.0f}); SDPA's costs {cost.sdpa_us:.0f} µs.",
            "",
        ]
    lines += ["<details><summary>Every cell (TFLOP/s)</summary>", "", *_cells(results), "", "</details>", ""]
    lines += [
        f"One run on one {environment.gpu} ({results.created[:10]}; {versions}): interleaved, cold L2, medians; the "
        f"ratios are geometric means over the cells. All numbers: [{path}]({path}). Yours: `attnforge bench`."
    ]
    return "\n".join(lines)


def rewritten(readme: str, text: str) -> str:
    """``readme`` with ``text`` between its markers."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    path, results = newest_run()
    text = rewritten(readme.read_text(), section(path.relative_to(ROOT).as_posix(), results))
    if check:
        stale = text != readme.read_text()
        print("README.md is stale: run python benchmarks/readme_table.py" if stale else "README.md is current")
        return int(stale)
    readme.write_text(text)
    draw_picture(results, ROOT / PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())

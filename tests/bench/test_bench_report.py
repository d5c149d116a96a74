"""Ratios, geometric means, worst cells, and what the terminal and the picture show of them."""

import io

import pytest
from rich.console import Console

from attnforge.bench.picture import draw_picture
from attnforge.bench.results import HostCost
from attnforge.bench.summary import compare
from attnforge.bench.table import host_line, report
from attnforge.codegen import Pass
from tests.bench.invented_results import make_results


def printed(renderable):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_ratio_is_the_peers_time_over_ours():
    cell = make_results().cells[0]
    assert cell.ratio("flash") == pytest.approx(450 / 300)
    assert cell.ratio("fa4") == pytest.approx(450 / 600)


def test_means_are_geometric_and_the_worst_cell_is_named():
    slow, fast = "D64 S1024 causal", "D128 S4096 full"
    ours = {slow: 150.0, fast: 600.0}
    results = make_results(lambda pass_, cell, name: ours.get(cell, 300.0) if name == "attnforge" else 300.0)
    comparisons = {(each.pass_, each.peer): each for each in compare(results)}
    assert len(comparisons) == 2 * 4
    flash = comparisons[Pass.FORWARD, "flash"]
    assert flash.mean_ratio == pytest.approx(1.0)  # 2 and 1/2; an arithmetic mean would say 1.04
    assert (flash.worst_cell, flash.worst_ratio, flash.cells) == (slow, pytest.approx(0.5), 18)


def test_a_failure_is_left_out_of_the_means_and_shown_as_a_dash_with_its_reason():
    results = make_results(
        lambda pass_, cell, name: None if (name, cell, pass_) == ("flex", "D64 S16384 full", Pass.FORWARD) else 300.0
    )
    cells = {(each.pass_, each.peer): each.cells for each in compare(results)}
    assert cells[Pass.FORWARD, "flex"] == 17
    assert cells[Pass.BACKWARD, "flex"] == 18
    text = printed(report(results))
    assert "– FlexAttention, forward, 1 cell: out of memory: CUDA out of memory" in text
    row = next(line for line in text.splitlines() if "16384" in line and "full" in line)
    assert row.count("–") == 1


def test_a_peer_that_never_ran_has_no_mean():
    results = make_results(lambda pass_, cell, name: None if name == "fa4" else 300.0)
    assert "fa4" not in {each.peer for each in compare(results)}
    assert printed(report(results))


def test_nothing_of_ours_leaves_no_ratio():
    results = make_results(lambda pass_, cell, name: None if name == "attnforge" else 300.0)
    assert compare(results) == []
    assert printed(report(results))


def test_the_report_shows_speeds_ratios_and_decisions():
    text = printed(report(make_results()))
    row = next(line for line in text.splitlines() if "forward" in line and "4096" in line and "causal" in line)
    for part in ("450", "300  1.50×", "500  0.90×", "600  0.75×", "exact"):
        assert part in row
    assert "geometric mean" in text


def test_host_cost_is_the_dispatched_call_minus_the_raw_launch():
    cost = HostCost(
        shape=(1, 1, 16, 64),
        dispatched_us=14.0,
        raw_launch_us=2.5,
        sdpa_us=16.0,
        dispatched_grad_us=25.0,
        sdpa_grad_us=21.0,
    )
    assert host_line(cost).startswith("dispatch overhead 11.5 µs; bar 12 µs")


@pytest.mark.parametrize("failed", [None, "fa4", "attnforge"])
def test_the_picture_is_written(tmp_path, failed):
    results = make_results(lambda pass_, cell, name: None if name == failed else 300.0)
    path = tmp_path / "new" / "results.png"
    draw_picture(results, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000

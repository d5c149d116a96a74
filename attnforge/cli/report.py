"""``attnforge report``: what tuning brought, as one HTML page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from attnforge.errors import AttnforgeError
from attnforge.settings import Settings
from attnforge.tuner.report.page import render_page
from attnforge.tuner.report.sources import read_sources


class ReportNotWrittenError(AttnforgeError):
    """The page could not be written."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"the report was not written to {path}: {reason}; --out takes another file")


def report(
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="What was tuned, such as sm_90 or sm_90-nvidia-h200. When left out: this machine's GPU, or the only "
            "one that was tuned.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("report.html"),
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="Of the trials, when the tune was given one.")
    ] = None,
) -> None:
    """Write what tuning brought as one HTML page: gains, searches, failures, environment.

    The page is made from your tuned cache and your studies, needs no GPU and no
    network, and refers to nothing outside itself: send it, or keep it beside the
    tuned cache.

    attnforge report --out h200.html
    """
    page = render_page(read_sources(Settings.from_environment(), target, storage), datetime.now(UTC))
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReportNotWrittenError(out, error.strerror or error) from error
    typer.echo(f"{out}: open it in a browser")

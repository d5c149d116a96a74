import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attnforge.cache.schema import Source, Toolchain
from attnforge.cache.store import TunedCacheStore
from attnforge.codegen import DType, Pass
from attnforge.compilation import Failure, FailureKind
from attnforge.errors import CorruptCacheRefused
from attnforge.settings import Settings
from attnforge.target import Target
from attnforge.tuner.report.page import render_page
from attnforge.tuner.report.sources import NothingToReportError, read_sources
from attnforge.tuner.study import Studies
from attnforge.tuner.task import self_attention
from tests.runtime.cache.entries import measured, predicted
from tests.tuner.report import fabricated

SECTIONS = ("summary", "convergence", "importance", "failures", "environment")
CREATED = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)


class Page(HTMLParser):
    """Elements, what they refer to, and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[str] = []
        self.references: list[str] = []
        self.sections: dict[str, str] = {"": ""}
        self._section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag == "wbr":
            self.sections[self._section] = self.sections[self._section].rstrip()
        self.references += [
            name for name, _ in attrs if name in ("src", "href", "srcset", "data", "action", "xlink:href")
        ]
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.sections[self._section] = ""

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        self.sections[self._section] += f"{words} " if words else ""


def page_of(settings: Settings, wanted: str | None = None) -> Page:
    return Page(render_page(read_sources(settings, wanted), CREATED))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(tmp_path_factory.mktemp("report"))
    fabricated.tune(settings, [fabricated.a_spec(), fabricated.a_spec(Pass.BACKWARD, 80)])
    unfinished = fabricated.a_spec(head_dim=96)
    fabricated.record_study(settings, unfinished, self_attention(96, 1024, DType.BF16), trials=6)
    return settings


@pytest.fixture(scope="module")
def page(settings: Settings) -> Page:
    return page_of(settings)


def test_every_section_is_there_in_order(page: Page) -> None:
    assert tuple(page.sections) == ("", *SECTIONS)
    assert all(text.strip() for text in page.sections.values())


def test_the_head_names_the_target_and_the_gain(page: Page) -> None:
    assert "NVIDIA H200" in page.sections[""]
    assert re.search(r"mean gain over the default configs 1\.\d\d× ", page.sections[""])
    assert "trials of 3 specs 64 " in page.sections[""], "the 24 of one length are among the 29 of the other"


def test_the_summary_has_every_entry_with_its_gain(page: Page, settings: Settings) -> None:
    entries = read_sources(settings, None).entries
    assert len(entries) == 4
    for entry in entries:
        assert f"{entry.gain:.2f}×" in page.sections["summary"]
        assert f"{entry.schedule}/{entry.config.name}" in page.sections["summary"]
    assert "seqlen 2049–4096, batch × heads 65–128, bfloat16" in page.sections["summary"]


def test_every_study_has_a_chart_and_its_words(page: Page, settings: Settings) -> None:
    assert page.elements.count("figure") == 5 + 3, "the studies; forward's specs together, and two alone"
    text = page.sections["convergence"]
    assert len(re.findall(r"found by trial|, the default config;", text)) == text.count("portable/") == 5
    assert "forward_d96_causal" in page.sections["convergence"], "a search without an entry"


def test_importance_has_bars_or_the_reason_why_not(page: Page) -> None:
    assert "block_m" in page.sections["importance"]
    text = page.sections["importance"]
    assert "forward, portable: 2 specs, 29 configs" in text
    assert "forward_d64_causal, portable: 24 configs" in text
    assert "Too few measured configs (10 needed) for a chart of their own: forward_d96_causal (portable 5);" in text


def test_failures_are_counted_by_kind_with_examples(page: Page) -> None:
    text = page.sections["failures"]
    for failure in fabricated.FAILURES:
        assert failure.kind in text
        assert failure.message.split("\n")[0] in text
    assert "11 of 64 trials failed" in text


def test_the_environment_is_told(page: Page) -> None:
    text = page.sections["environment"]
    for words in ("sm_90-nvidia-h200", "132 SMs", "227 KiB", "3.6.0", "2.11.0+cu130", "0123456789abcdef"):
        assert words in text
    assert "SM clock 1815 to 1980 MHz temperature 41 °C power 480 to 690 W" in text
    assert "2026-11-23 12:30 UTC" in text


def test_nothing_outside_the_page_is_referred_to(page: Page) -> None:
    assert page.references == []
    assert not re.search(r"url\(|@import", page.html)
    # What a failure said is text, and its address is only that.
    said = page.html.replace("&lt;img src=https://example.org/x.png&gt;", "")
    assert not re.search(r"https?:|//\w", said)


def test_what_a_failure_said_is_text(page: Page) -> None:
    assert "<script>alert('x')</script>" in page.sections["failures"]
    assert "script" not in page.elements
    assert "img" not in page.elements


def test_what_a_cache_says_is_text(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    target = Target(arch="sm_90", name="<b>H200</b>", sm_count=132, shared_memory=232448)
    hostile = Toolchain(triton="<i>3.6.0</i>", torch="\"'><script>1</script>", templates="0123456789abcdef")
    TunedCacheStore(settings).write(target, [predicted(toolchain=hostile)])
    page = page_of(settings)
    assert "<b>H200</b>" in page.sections[""]
    assert "<i>3.6.0</i>" in page.sections["environment"]
    assert not {"i", "script"} & set(page.elements)


def test_both_colour_schemes_and_small_screens_are_provided_for(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.html
    assert re.search(r'name="viewport" content="width=device-width', page.html)


def test_a_noisy_comparison_is_labelled_and_counted(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    entries = [
        measured(seqlen=seqlen, noise=noise)
        for seqlen, noise in ((1024, ()), (4096, ("another process on the GPU",)), (16384, ()))
    ]
    TunedCacheStore(settings).write(fabricated.H200, entries)
    page = page_of(settings)
    assert "comparisons were noisy 1 of 3" in page.sections[""]
    quiet, noisy, too = page.sections["summary"].split("seqlen ")[1:]
    assert "noisy: another process on the GPU" in noisy
    assert "noisy" not in quiet + too


def test_without_noise_nothing_is_said_of_it(page: Page) -> None:
    assert "were noisy" not in page.sections[""]
    assert "noisy" not in page.sections["summary"]


def test_predictions_are_called_so(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    TunedCacheStore(settings).write(Target.for_arch("sm_90"), [predicted(gain=1.3)])
    page = page_of(settings)
    assert "mean predicted gain over the default configs" in page.sections[""]
    assert "predicted, not measured" in page.sections["summary"]
    assert "There are no studies" in page.sections["convergence"]
    assert "There are no trials" in page.sections["failures"]


def test_an_entry_without_a_default_has_no_bar(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    entry = predicted(source=Source.MEASURED, median_ms=1.0, gain=None)
    TunedCacheStore(settings).write(fabricated.H200, [entry])
    assert "The default config did not run." in page_of(settings).sections["summary"]


def test_studies_alone_make_a_report_that_says_so(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    failures = (Failure(FailureKind.CRASH, ""),)
    problem = self_attention(64, 1024, DType.BF16)
    fabricated.record_study(settings, fabricated.a_spec(), problem, trials=5, failures=failures)
    page = page_of(settings)
    assert "There is no tuned cache of this target" in page.sections[""]
    assert "The tuned cache has no entry" in page.sections["summary"]
    assert "it said nothing" in page.sections["failures"]


def test_a_refused_cache_is_named_and_the_studies_still_tell(settings: Settings, tmp_path: Path) -> None:
    here = Settings(tmp_path)
    fabricated.tune(here, [fabricated.a_spec()], (1024,))
    cache = TunedCacheStore(here).path(fabricated.H200)
    cache.write_bytes(cache.read_bytes()[:-10])
    page = page_of(here)
    assert f"{cache.name} is refused: its content does not match its digest" in page.sections[""]
    assert page.sections["convergence"].count("found by trial") == 1
    (here.studies_dir / f"{fabricated.H200.slug}.sqlite3").unlink()
    with pytest.raises(CorruptCacheRefused):
        read_sources(here, None)


def test_a_study_without_trials_is_nothing_to_report(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    problem = self_attention(64, 1024, DType.BF16)
    Studies(settings, fabricated.H200).study(fabricated.a_spec(), problem, fabricated.VERSIONS)
    with pytest.raises(NothingToReportError, match="attnforge tune"):
        read_sources(settings, None)

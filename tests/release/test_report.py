"""The report as a browser shows it: one page, nothing fetched, every plot there, nothing on the console."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from deepspec.artifacts import ArtifactRef
from deepspec.benchmark.figure import speed_by_batch, speedup_by_load
from deepspec.evaluate.figure import acceptance_by_position, reliability
from deepspec.formats.exports import ExportIndex
from deepspec.formats.scores import Difference, Interval
from deepspec.formats.served import EngineSpeed
from deepspec.formats.speed import LoadSpeed
from deepspec.page.page import html, markdown
from deepspec.release.report import Released, sections, warnings
from tests.release.test_run import calibration, interval, scores_of, speed_of

DRAFT = ArtifactRef(kind="draft", address="d" * 32, content="c", uri="here")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def released() -> Released:
    scores = scores_of(DRAFT, calibration=(calibration(),))
    load = LoadSpeed(requests=4, plain_tokens_per_second=40, fixed_tokens_per_second=44, scheduled_tokens_per_second=50)
    served = EngineSpeed(
        engine="llama.cpp b1", samples=3, tokens_per_round=interval(3.0), ours=interval(1.5), agrees=False,
        accept_rate=0.3, tokens_per_second=50, plain_tokens_per_second=40,
    )  # fmt: skip
    speed = speed_of(DRAFT).model_copy(update={"loads": (load,), "served": served})
    before = Difference(
        benchmark="all", temperature=0.0, samples=3, first=1.4, second=1.5,
        difference=Interval(value=0.1, low=0.05, high=0.15),
    )  # fmt: skip
    figures = {
        "acceptance": acceptance_by_position(scores.overall),
        "reliability": reliability(calibration()),
        "speed": speed_by_batch(speed),
        "load": speedup_by_load(speed),
    }
    return Released(
        scores=scores, speed=speed, index=ExportIndex(forms={}), trained={}, lineage={}, figures=figures,
        differences=[before],
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Released:
    return released()


def test_the_report_tells_everything_and_warns_first(found: Released):
    text = markdown("t", warnings(found), sections(found))
    assert text.index("**llama.cpp b1 makes 3.000 [2.900, 3.100] tokens per round") < text.index("## Acceptance")
    for row in (
        "| all | 0.0 | 3 | 1.400 | 1.500 | +0.100 | +0.050 to +0.150 | better |",
        "| 1 | 18 | 1.50 | 0.1000 | 0.1000 | 0.8000 | 0.2000 | 0.2000 |",
        "| 0.5 | 2.000 | 1.400 | 0.470 |",
        "| 4 | 40.0 | 1.10 x | 1.25 x |",
    ):
        assert row in text


def test_the_report_shows_how_the_draft_grew_where_it_was_trained_here(found: Released):
    assert "While it was trained" not in [each.title for each in sections(found)]
    look = {"step": 40, "accepted_length": 2.5, "accepted_length_low": 2.25, "accepted_length_high": 2.75}
    trained = replace(found, trained={"held_out": look}, figures={**found.figures, "learning_curve": b"png"})
    (shown,) = [each for each in sections(trained) if each.title == "While it was trained"]
    assert shown.figures == {"learning_curve": b"png"}
    assert "Those of the draft, of step 40: 2.500 (2.250 to 2.750)." in shown.texts[1]
    (bare,) = [each for each in sections(replace(trained, trained={"held_out": None})) if each.title == shown.title]
    assert len(bare.texts) == 1


def test_what_was_found_about_an_adopted_draft_is_warned_of_first(found: Released):
    loud = "The draft's embedding is not the target's"
    assert warnings(replace(found, trained={**found.trained, "warnings": [loud]}))[0] == loud


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install -y chromium to open reports in it")
def test_a_browser_shows_every_plot_and_finds_nothing_to_complain_about(found: Released, tmp_path: Path):
    page = html("t <b>", warnings(found), sections(found))
    assert not re.search(r"(src|href)=\"https?:", page)
    assert "t &lt;b&gt;" in page
    probe = "<script>onload = () => document.title = [...document.images].map(i => i.naturalWidth > 200)</script>"
    (tmp_path / "report.html").write_text(page.replace("</body>", f"{probe}</body>"))
    shown = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile",
            "--dump-dom", f"file://{tmp_path}/report.html",
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "<title>true,true,true,true</title>" in shown.stdout
    assert shown.stdout.count("<table>") == 8
    assert not [line for line in shown.stderr.splitlines() if "CONSOLE" in line]

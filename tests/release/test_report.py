"""The report as a browser shows it: one page, nothing fetched, every plot there, nothing on the console."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deepspec.artifacts import ArtifactRef
from deepspec.benchmark.figure import speed_by_batch, speedup_by_load
from deepspec.calibration.figure import reliability
from deepspec.formats.engine_speed import EngineSpeed
from deepspec.formats.exports import ExportedForm, ExportIndex
from deepspec.formats.numbers import Interval
from deepspec.formats.scores import Difference
from deepspec.formats.served import Change, ProposedLength, Tried
from deepspec.formats.speed import LoadSpeed
from deepspec.page.figure import acceptance_by_position
from deepspec.page.page import html, markdown
from deepspec.release.card import Proposed, serving
from deepspec.release.render import render
from deepspec.release.report import Released, sections, warnings
from deepspec.release.run import shown_in
from deepspec.release.spec import ReleaseSpec
from tests.given.published.numbers import (
    interval,
    loaded,
)
from tests.release.test_run import calibration, scores_of, speed_of

TRAINED = {"steps": 9, "tokens": 700, "parameters": 1234}
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
        scores=scores, speed=speed, index=ExportIndex(forms={}), trained=TRAINED, lineage={}, figures=figures,
        differences=[before],
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Released:
    return released()


def test_the_report_tells_everything_and_warns_first(found: Released) -> None:
    text = markdown("t", warnings(found), sections(found))
    assert text.index("**llama.cpp b1 makes 3.000 [2.900, 3.100] tokens per round") < text.index("## Acceptance")
    for row in (
        "| all | 0.0 | 3 | 1.400 | 1.500 | +0.100 | +0.050 to +0.150 | better |",
        "| 1 | 18 | 1.50 | 0.1000 | 0.1000 | 0.8000 | 0.2000 | 0.2000 |",
        "| 0.5 | 2.000 | 1.400 | 0.470 |",
        "| 4 | 40.0 | 1.10 x | 1.25 x |",
    ):
        assert row in text


def test_the_report_shows_how_the_draft_grew_where_it_was_trained_here(found: Released) -> None:
    assert "While it was trained" not in [each.title for each in sections(found)]
    look = {"step": 40, "accepted_length": 2.5, "accepted_length_low": 2.25, "accepted_length_high": 2.75}
    trained = replace(found, trained={"held_out": look}, figures={**found.figures, "learning_curve": b"png"})
    (shown,) = [each for each in sections(trained) if each.title == "While it was trained"]
    assert shown.figures == {"learning curve": b"png"}
    assert "Those of the draft, of step 40: 2.500 (2.250 to 2.750)." in shown.texts[1]
    (bare,) = [each for each in sections(replace(trained, trained={"held_out": None})) if each.title == shown.title]
    assert len(bare.texts) == 1


def test_what_was_found_about_an_adopted_draft_is_warned_of_first(found: Released) -> None:
    loud = "The draft's embedding is not the target's"
    assert warnings(replace(found, trained={**found.trained, "warnings": [loud]}))[0] == loud


def test_what_an_engine_gave_under_load_stands_in_the_report(found: Released) -> None:
    loud = "At 8 requests at once: with: its counters began anew."
    speed = found.speed.model_copy(update={"under_load": loaded(warnings=(loud,))})
    served = replace(found, speed=speed, figures={**found.figures, "served": b"png"})
    text = markdown("t", warnings(served), sections(served))
    assert text.index(loud) < text.index("## Acceptance")
    for line in (
        "The draft pays up to 4.0 requests at once (95 %: 3.0 to above 8).",
        "| 1 at once | 15.0 [15.0, 15.0\\] | 10.0 [10.0, 10.0\\] | 1.50 [1.50, 1.50\\] |",
        "loses 12% at 4 of its tokens per second",  # 44 of 50
        "| 8 | nothing | 1.00 |",
    ):
        assert line in text, text[text.index("## Served under load") :]
    (shown,) = [each for each in sections(served) if each.title == "Served under load"]
    assert shown.figures == {"speed by load, served": b"png"}


def test_engines_are_told_to_propose_what_was_best_under_load(found: Released) -> None:
    form = ExportedForm(files={"draft.gguf": "x"})
    plain = Proposed.of(found.scores, found.speed)
    assert "--spec-draft-n-max 7" in serving("llama.cpp", "t", form, plain)
    assert "per_batch_size" not in serving("vllm", "t", form, plain)
    chosen = tuple(ProposedLength(load=load, tokens=tokens, speedup=1) for load, tokens in ((1, 5), (8, 2)))
    tried = tuple(
        Tried(load=load, max_tokens=3, least=0.5, tokens_per_second=interval(20.0), tokens_per_round=None)
        for load in (1, 8)
    )
    under_load = loaded(proposals=chosen, best=ProposedLength(load=8, tokens=4, speedup=1.1))
    at_best = Proposed.of(found.scores, found.speed.model_copy(update={"under_load": under_load}))
    assert "--spec-draft-n-max 4" in serving("llama.cpp", "t", form, at_best)
    command = serving("vllm", "t", form, at_best)
    assert '"num_speculative_tokens": 5, "num_speculative_tokens_per_batch_size": [[1, 1, 5], [2, 8, 2]]' in command
    better = under_load.model_copy(update={"tried": tried})  # 20 x 20 against 15 x 7.5
    as_tried = Proposed.of(found.scores, found.speed.model_copy(update={"under_load": better}))
    assert "--spec-draft-n-max 3 --spec-draft-p-min 0.5" in serving("llama.cpp", "t", form, as_tried)


@pytest.mark.parametrize(
    ("algorithm", "method", "told"),
    [
        ("dspark", None, "DSPARK PATH --speculative-dspark-block-size 3"),
        ("dflash", "dflash", "DFLASH PATH --speculative-dflash-block-size 4"),
        ("eagle3", None, "EAGLE3 PATH --speculative-num-steps 3 --speculative-eagle-topk 1"),
        ("mtp", "mtp", "NEXTN --speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4"),
    ],
)
def test_sglang_is_told_how_many_tokens_a_chain_has(algorithm: str, method: str | None, told: str) -> None:
    command = serving("sglang", "t", ExportedForm(method=method), Proposed(algorithm=algorithm, tokens=3))
    words = " ".join(command.replace("\\\n", " ").split())
    assert told.replace("PATH", "--speculative-draft-model-path ./sglang") in words


def test_what_no_file_tells_the_engine_stands_in_the_command() -> None:
    told = ExportedForm(options=("--speculative-draft-window-size 63",))
    command = serving("sglang", "t", told, Proposed(algorithm="eagle3", tokens=3))
    assert command.endswith("--speculative-num-draft-tokens 4 --speculative-draft-window-size 63")
    assert "window" not in serving("vllm", "t", ExportedForm(), Proposed(algorithm="eagle3", tokens=3))


def test_llama_cpp_is_given_heads_beside_the_target() -> None:
    form = ExportedForm(method="mtp", files={"draft.gguf": "llama.cpp__draft.gguf"})
    command = serving("llama.cpp", "t", form, Proposed(algorithm="mtp", tokens=3))
    assert command.endswith("-md ./llama.cpp/draft.gguf --spec-type draft-mtp --spec-draft-n-max 3")


def test_a_release_that_is_slower_than_the_one_before_says_so_first(found: Released) -> None:
    slower = Change(load=4, context=None, before=interval(9.0), now=interval(7.0), verdict="slower")
    speed = found.speed.model_copy(update={"under_load": loaded(changes=(slower,))})
    assert "Slower than the release before at 4 requests at once." in warnings(replace(found, speed=speed))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install -y chromium to open reports in it")
def test_a_browser_shows_every_plot_and_finds_nothing_to_complain_about(found: Released, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ((), []),
        (("acceptance", "speed"), ["acceptance.png", "speed.png"]),
        (("acceptance", "speed", "load", "reliability"), ["acceptance.png", "load.png"]),
        (("acceptance", "load", "learning_curve"), ["acceptance.png", "load.png", "learning_curve.png"]),
    ],
)
def test_the_card_shows_what_was_drawn_and_nothing_else(
    found: Released, names: tuple[str, ...], shown: list[str]
) -> None:
    card = render(ReleaseSpec(target="ORG/target"), replace(found, figures=dict.fromkeys(names, b"png")))
    assert shown_in(card) == shown
    assert card.count("![") == len(shown)
    assert list(yaml.safe_load(card.split("---\n")[1])) == ["license", "base_model", "library_name", "tags"]

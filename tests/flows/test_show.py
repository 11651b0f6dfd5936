"""The summary at the end of a run says what its numbers rest on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli import show
from cli.show import headline
from deepspec.plan.probe import REFERENCE
from deepspec.publish import Out
from deepspec.specs import Spec
from deepspec.store import Store
from flows.choices import Choices, choose_site

SCORES = {
    "accepted_length": {"0.0": 1.5},
    "accepted_length_untrained": 1.0,
    "lossless": True,
    "lossless_samples": 4,
    "left_out": [],
}


def shown(folder: Path, **scores: Any) -> dict[str, str]:
    """Return the headline of a run whose scores tell these counts."""
    store, steps = Store(folder / "store"), list[Any]()
    counts = {"evaluate": {**SCORES, **scores}, "benchmark": {"speedup": {}, "break_even": {}, "engine": None}}
    for number, (stage, told) in enumerate(counts.items()):
        out = Out(store, stage, str(number) * 32, {}, folder / "scratch")
        out.file("a").write_text("a")
        steps.append(SimpleNamespace(stage=stage, ref=out.publish(Spec(), 1, told)))
    built: Any = SimpleNamespace(steps=steps)
    return {str(row["what"]): str(row["value"]) for row in headline(store, built)}


def test_what_is_left_out_of_the_scores_is_told_beside_them(tmp_path: Path) -> None:
    assert "left out of the scores" not in shown(tmp_path / "all")
    told = shown(tmp_path / "some", left_out=["sums: 1 of 3 turns were not asked"])
    assert told["left out of the scores"] == "sums: 1 of 3 turns were not asked"


@pytest.mark.parametrize(
    ("lossless", "samples", "wanted"),
    [
        (True, 4, "yes, 4 samples"),
        (False, 4, "NO, 4 samples"),
        (None, 0, "not checked"),
        (True, 0, "not checked"),  # as scores of an earlier version say it
    ],
)
def test_lossless_is_what_was_checked(tmp_path: Path, lossless: bool | None, samples: int, wanted: str) -> None:
    told = shown(tmp_path, lossless=lossless, lossless_samples=samples)
    assert told["lossless at temperature 0"] == wanted


def test_a_run_begins_with_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine like the one that the laptop's rates are of; not where a draft is given, nor for another device."""
    monkeypatch.setattr(show, "probe", lambda: REFERENCE)
    site = choose_site()
    show.forecast(Choices().plan, site)
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("100 prompts, 200 training steps; this will take about 5.")
    assert "more prompts and steps: --size laptop, --size hour" in told
    show.forecast(Choices(draft="draft/ab").plan, site)
    show.forecast(Choices().plan, choose_site(device="cuda"))
    assert capsys.readouterr().out == ""

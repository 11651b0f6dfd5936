"""`deepspec.eval.regressed` is emitted with its evidence where scores are worse than their baseline, and only there."""

from pathlib import Path
from typing import Any

import pytest

from deepspec.formats.numbers import Interval
from deepspec.formats.scores import SCORES, Comparison, Difference, Scores
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.specs import Spec
from deepspec.store import Store
from infra.site import Site
from tasks import alert

WORSE = ("accepted length at temperature 0 fell from 2.000 to 1.700",)


def announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regressions: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the events that scores with these regressions cause."""
    difference = Difference(
        benchmark="all", temperature=0.0, samples=9, first=2.0, second=1.7,
        difference=Interval(value=-0.3, low=-0.4, high=-0.2),
    )  # fmt: skip
    scores = Scores(
        algorithm="dspark", draft="d" * 32, target="t", slots=4, overall={}, benchmarks=(), slices=(), untrained=None,
        lossless=None, calibration=(),
        comparison=Comparison(baseline="b" * 32, differences=(difference,), regressions=regressions),
    )  # fmt: skip
    out = Out(Store(tmp_path / "store"), "scores", "s" * 32, {}, tmp_path / "scratch")
    out.file(SCORES).write_text(scores.model_dump_json())
    ref = out.publish(Spec(), 1, {})
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(alert, "emit_event", lambda event, **told: events.append({"event": event, **told}))
    site = Site(root=str(tmp_path / "store"), placement=Placement(scratch=tmp_path / "scratch"))
    assert alert.announce.fn(ref, site) == regressions
    return events


def test_a_regression_is_told_with_its_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (event,) = announced(tmp_path, monkeypatch, WORSE)
    assert event["event"] == "deepspec.eval.regressed"
    assert event["resource"]["prefect.resource.id"] == f"deepspec.draft.{'d' * 32}"
    assert event["payload"]["regressions"] == list(WORSE)
    assert event["payload"]["differences"][0]["difference"] == "-0.300"
    assert event["payload"]["scores"].endswith(f"scores/{'s' * 32}")


def test_no_regression_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert announced(tmp_path, monkeypatch, ()) == []

"""The release: a card that says what is true, folders that load, and no number without its origin."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from deepspec.catalog import scores_before, set_ref
from deepspec.checkpoint.draft import load_draft
from deepspec.errors import CorruptArtifactError, NotPublishedError
from deepspec.formats.exports import write_form
from deepspec.formats.numbers import Interval
from deepspec.formats.scores import (
    Acceptance,
    BenchmarkScore,
    CalibrationScore,
    LosslessCheck,
    PositionCalibration,
    PositionFit,
    Reliability,
    Scores,
    ThresholdScore,
)
from deepspec.formats.speed import BatchSpeed, Speed
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.release.run import against_before, run
from deepspec.release.spec import ReleaseSpec
from tests.given.heard import Heard
from tests.given.published.exports import publish_exports
from tests.given.published.numbers import interval
from tests.given.published.numbers import scores as published_scores


def acceptance(length: float) -> Acceptance:
    names = Acceptance.model_fields.keys() - {"samples", "rounds", "tokens", "cumulative", "conditional"}
    values = dict.fromkeys(names, interval(length))
    return Acceptance(
        samples=3, rounds=30, tokens=40, cumulative=(interval(0.4),), conditional=(interval(0.4),), **values
    )


def benchmark(**changes: Any) -> BenchmarkScore:
    told = {"questions": 3, "asked_for": 3, "too_long": 0, "stopped": 1, "acceptance": acceptance(1.5), **changes}
    return BenchmarkScore(benchmark="sums", digest="d", temperature=0.0, **told)


def scores_of(draft: ArtifactRef, /, **changes: Any) -> Scores:
    fields = {
        "algorithm": "dspark", "draft": draft.address, "target": "t", "slots": 7, "overall": {"0.0": acceptance(1.5)},
        "benchmarks": (benchmark(),), "slices": (), "untrained": acceptance(1.0), "calibration": (),
        "lossless": LosslessCheck(samples=4, equal=3, ties=1, divergences=()),
    }  # fmt: skip
    return Scores(**{**fields, **changes})


def calibration() -> CalibrationScore:
    bins = tuple(Reliability(low=x, high=x + 0.5, count=9, predicted=x + 0.2, observed=x + 0.1) for x in (0.0, 0.5))
    position = PositionCalibration(
        position=1, count=18, ece=0.1, auroc=0.8, brier=0.2, predicted=0.45, observed=0.35, bins=bins
    )
    return CalibrationScore(
        temperature=0.0, confidence_temperatures=(1.5,), fitted_rounds=40, before=(position,), after=(position,),
        thresholds=(ThresholdScore(threshold=0.5, proposal_length=2.0, accepted_length=1.4, verify_rate=0.47),),
    )  # fmt: skip


def speed_of(draft: ArtifactRef, speedup: float = 1.25) -> Speed:
    batch = BatchSpeed(
        batch=1, tokens_per_second=20, plain_tokens_per_second=16, speedup=speedup, spread=1, tokens_per_round=1.5,
        round_seconds=0.1, round_cost=1.2, shares={}, plain_shares={}, prefill_seconds=1,
    )  # fmt: skip
    return Speed(
        algorithm="dspark", draft=draft.address, target="t", hardware="two cores", engine="ours", threads=2, slots=7,
        temperature=0.0, batches=(batch,),
    )  # fmt: skip


def release(
    tmp_path: Path, kind: str = "dspark", speedup: float = 1.25, **changes: Any
) -> tuple[Artifact, dict[str, Any], str]:
    """Publish a release; return it, the counts and the card."""
    exports, _, _ = publish_exports(tmp_path, kind)
    store, scratch = exports.store, tmp_path / "scratch"
    draft = open_artifact(store, exports.manifest.inputs["draft"], scratch)
    inputs = {"draft": draft, "exports": exports}
    for name, value in (("scores", scores_of(draft.ref, **changes)), ("speed", speed_of(draft.ref, speedup))):
        out = Out(store, name, name, {"draft": draft.ref}, scratch)
        out.file(f"{name}.json").write_text(value.model_dump_json())
        for picture in ("acceptance.png", "reliability.png"):
            out.file(picture).write_bytes(b"png")
        out.file("report.md").write_text("# Scores\n")
        inputs[name] = open_artifact(store, out.publish(ReleaseSpec(target="x"), 1, {}), scratch)
    spec = ReleaseSpec(target="ORG/target", target_license="apache-2.0", dataset="demo", dataset_license="mit")
    out = Out(store, "release", "release", {name: each.ref for name, each in inputs.items()}, scratch)
    counts = run(spec, inputs, out, Placement(), Heard())
    published = open_artifact(store, out.publish(spec, 1, counts), scratch)
    return published, counts, published.read_bytes("README.md").decode()


def test_the_card_says_what_was_measured_and_where_it_comes_from(tmp_path: Path) -> None:
    published, counts, card = release(tmp_path)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["base_model"] == "ORG/target"
    assert "| sums | 0 | 3 | 1.500 | 1.400 to 1.600 | 1.500 | 1.500 |" in card
    assert "| untrained draft | 0 | 3 | 1.000 |" in card
    assert "| 1 | 20.0 | 16.0 | 1.25 | 1.50 | 1.20 |" in card
    assert '"method": "dspark", "model": "./vllm", "num_speculative_tokens": 7' in card
    assert "--spec-type draft-dspark --spec-draft-n-max 7" in card
    assert "lossless; 3 of 4 samples are equal" in " ".join(card.split())
    assert f"draft/{published.manifest.inputs['draft'].address}" in card
    assert counts["warnings"] == ["The parity gate was not run on these forms."]  # no weights of the target here
    assert "9 steps on 700 tokens; 1,234 trained parameters" in card
    assert counts["accepted_length"] == {"0.0": 1.5}
    assert counts["speedup"] == {"1": 1.25}
    report = published.read_bytes("report.md").decode()
    assert "## Acceptance" in report
    assert "## Speed\n\ntwo cores; ours; 2 threads; temperature 0." in report


def test_a_draft_that_was_trained_elsewhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.given.published.exports.TRAINED", {"parameters": 1234, "adopted": "ORG/draft"})
    _, _, card = release(tmp_path)
    assert "Trained elsewhere: `ORG/draft`; 1,234 trained parameters" in card
    assert "steps on" not in card
    assert "The prompts are under" not in card


def test_folders_of_the_release_load_and_hold_the_card(tmp_path: Path) -> None:
    published, counts, card = release(tmp_path)
    for form in counts["forms"]:
        write_form(published, form, tmp_path / "out" / form)
        assert (tmp_path / "out" / form / "README.md").read_text() == card
    assert load_draft(tmp_path / "out" / "vllm").config.block_size == 7


def test_provenance_names_every_ancestor_and_no_path(tmp_path: Path) -> None:
    published, _, _ = release(tmp_path)
    told = published.read_bytes("provenance.json").decode()
    assert {name.split("/")[0] for name in json.loads(told)} == {"draft", "exports", "scores", "speed"}
    assert str(tmp_path) not in told


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"lossless": LosslessCheck(samples=4, equal=3, ties=0, divergences=())}, "not lossless in evaluation"),
        ({"speedup": 0.9}, "plain decoding is faster at every batch size"),
        ({"lossless": None}, "Losslessness was not checked."),
        ({"lossless": LosslessCheck(samples=0, equal=0, ties=0, divergences=())}, "Losslessness was not checked: no"),
        (
            {"benchmarks": (benchmark(too_long=2, turns=5),)},
            "Left out of the scores: sums: 2 of 5 turns were not asked",
        ),
        ({"untrained": acceptance(1.6)}, "accepted no longer (1.500) than an untrained one (1.600)"),
    ],
)
def test_what_is_wrong_stands_at_the_top_of_the_card(tmp_path: Path, changes: dict[str, Any], warning: str) -> None:
    _, counts, card = release(tmp_path, **changes)
    assert any(warning in told for told in counts["warnings"])
    assert warning in card.split("## How good it is")[0]


def test_turns_left_out_stand_beside_what_was_scored(tmp_path: Path) -> None:
    _, _, card = release(tmp_path, benchmarks=(benchmark(too_long=2, turns=5),))
    assert "| sums | 0 | 3 | 1.500 | 1.400 to 1.600 | 1.500 | 1.500 | 2 |" in card
    assert "| all | 0 | 3 | 1.500 | 1.400 to 1.600 | 1.500 | 1.500 | 2 |" in card


def test_no_sample_checked_is_not_lossless(tmp_path: Path) -> None:
    _, counts, card = release(tmp_path, lossless=LosslessCheck(samples=0, equal=0, ties=0, divergences=()))
    assert counts["lossless"] is None
    assert "; lossless" not in card
    assert ": lossless" not in card


def fitted(kept: bool) -> tuple[CalibrationScore, ...]:
    change = Interval(value=-0.02, low=-0.03, high=-0.01 if kept else 0.01)
    fit = PositionFit(position=1, temperature=1.5, difference=change, kept=kept)
    return (calibration().model_copy(update={"fits": (fit,), "confidence_temperatures": (1.5,) if kept else ()}),)


def test_temperatures_that_help_lie_in_the_release_and_others_do_not(tmp_path: Path) -> None:
    published, _, card = release(tmp_path / "kept", calibration=fitted(True))
    assert json.loads(published.read_bytes("calibration.json"))["confidence_temperatures"] == [1.5]
    assert "divide the confidence logit of position k by `calibration.json`" in card
    assert "the 95 % interval of the change below zero: at position 1." in card
    published, _, card = release(tmp_path / "not", calibration=fitted(False))
    assert "calibration.json" not in published.names()
    assert "there is no `calibration.json`" in card
    assert "None is used." in card
    assert "| 1.50: ECE -0.0200 [-0.0300, +0.0100], not used |" in published.read_bytes("report.md").decode()


def test_a_refused_form_is_named_on_the_card(tmp_path: Path) -> None:
    _, counts, card = release(tmp_path, "dspark_gated")
    assert counts["refused"].keys() == {"vllm", "llama.cpp"}
    assert "Not written for **vllm**: the draft has a gated Markov head" in card


def test_the_release_before_is_compared_question_by_question(tmp_path: Path) -> None:
    before = published_scores(tmp_path, "a", {"sums/0": 1, "sums/1": 3})
    now = published_scores(tmp_path, "b", {"sums/0": 2, "sums/1": 4, "new/0": 0})
    spec = ReleaseSpec(target="ORG/target", previous="a" * 32)
    found = {each.benchmark: each for each in against_before(spec, now, tmp_path)}
    assert (found["all"].first, found["all"].second, found["all"].verdict) == (3.0, 4.0, "better")
    assert against_before(spec.but(previous=None), now, tmp_path) == []
    with pytest.raises(NotPublishedError, match="scores of the release before, scores/zzz, are gone"):
        against_before(spec.but(previous="zzz"), now, tmp_path)
    assert before.store.root == now.store.root


def test_the_baseline_is_the_release_before_where_it_is_for_the_same_target(tmp_path: Path) -> None:
    published, _, _ = release(tmp_path)
    store = published.store
    assert scores_before(store, "ORG/target") is None
    set_ref(store, "baseline", published.ref)
    assert scores_before(store, "ORG/target") == "scores"
    assert scores_before(store, "ORG/other") is None
    set_ref(store, "baseline", published.manifest.inputs["draft"])
    assert scores_before(store, "ORG/target") is None


def test_scores_of_another_draft_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match="scores are of draft other"):
        release(tmp_path, draft="other")

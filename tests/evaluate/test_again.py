"""An evaluation done again: same questions, same settings, today's target, and the first one's scores beside it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from deepspec.artifacts import ArtifactRef
from deepspec.errors import NotPublishedError, SpecError
from deepspec.evaluate.again import evaluated_again
from deepspec.evaluate.run import run
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.formats.scores import SCORES, read_scores
from deepspec.publish import Out
from deepspec.release.spec import ReleaseSpec
from tests.given.heard import Heard
from tests.given.published.evaluated import Given, given, publish_better

NOW = datetime(2026, 1, 31, 6, tzinfo=UTC)


def evaluate(case: Given, spec: EvaluateSpec, address: str) -> tuple[Out, Heard]:
    out = Out(case.store, "scores", address * 32, {"draft": case.draft.ref}, case.placement.scratch)
    heard = Heard()
    out.publish(spec, 1, run(spec, {"draft": case.draft}, out, case.placement, heard))
    return out, heard


def scores_ref(case: Given, address: str) -> ArtifactRef:
    return case.draft.ref.model_copy(update={"kind": "scores", "address": address * 32})


@pytest.fixture
def case(tmp_path: Path) -> Given:
    return given(tmp_path)


@pytest.fixture
def spec(case: Given) -> EvaluateSpec:
    return EvaluateSpec(
        target=case.target, benchmarks=case.benchmarks, temperatures=(0.0,), max_new_tokens=9, untrained_samples=0
    )


def test_a_release_is_evaluated_again_as_it_was(case: Given, spec: EvaluateSpec) -> None:
    evaluate(case, spec, "b")
    inputs = {"draft": case.draft.ref, "scores": scores_ref(case, "b")}
    release = Out(case.store, "release", "r" * 32, inputs, case.placement.scratch)
    release.file("README.md").write_text("card\n")
    released = release.publish(ReleaseSpec(target="t"), 1, {})
    today = case.target.model_copy(update={"weights": "new"})
    again, draft = evaluated_again(case.store, released, today, NOW)
    assert draft == case.draft.ref
    assert again == spec.but(target=today, as_of="2026-01-31T06:00:00+00:00", baseline="b" * 32)
    assert again.identity() != evaluated_again(case.store, released, today, NOW.replace(day=30))[0].identity()


def test_what_is_no_release_is_refused(case: Given) -> None:
    with pytest.raises(SpecError, match="is of kind draft; wanted a release or scores"):
        evaluated_again(case.store, case.draft.ref, case.target, NOW)
    with pytest.raises(NotPublishedError, match="are not published"):
        evaluated_again(case.store, case.draft.ref.model_copy(update={"kind": "scores"}), case.target, NOW)


def test_the_same_again_is_no_worse_and_less_than_the_baseline_is(case: Given, spec: EvaluateSpec) -> None:
    evaluate(case, spec, "b")
    out, heard = evaluate(case, spec.but(baseline="b" * 32, as_of="now"), "c")
    comparison = read_scores(out.file(SCORES)).comparison
    assert comparison is not None
    assert (comparison.baseline, comparison.regressions) == ("b" * 32, ())
    assert [each.difference.value for each in comparison.differences] == [0.0, 0.0, 0.0]
    assert "Nothing says that the draft is worse" in heard.texts["scores"]

    publish_better(case.store, scores_ref(case, "b"), "d" * 32, case.placement.scratch)
    out, heard = evaluate(case, spec.but(baseline="d" * 32, as_of="now"), "e")
    comparison = read_scores(out.file(SCORES)).comparison
    assert comparison is not None
    assert comparison.regressions[0].startswith("accepted length at temperature 0 fell from")
    assert "**Worse than the baseline: accepted length at temperature 0 fell" in heard.texts["scores"]
    assert heard.tables["comparison"][0]["benchmark"] == "all"


def test_a_baseline_that_is_gone_is_named(case: Given, spec: EvaluateSpec) -> None:
    with pytest.raises(NotPublishedError, match=r"the baseline .*scores/zzz.* is gone"):
        evaluate(case, spec.but(baseline="zzz"), "f")

"""The stage as a whole, on a tiny target."""

import re
from pathlib import Path
from typing import Any

import pytest

from deepspec.errors import SourceError, TargetError
from deepspec.evaluate.questions import ask
from deepspec.evaluate.run import run
from deepspec.evaluate.shards import Shard, ShardRole, alike
from deepspec.evaluate.spec import EvaluateOptions, EvaluateSpec
from deepspec.formats.questions import BenchmarkQuestion
from deepspec.formats.scores import SCORES, Scores, read_scores
from deepspec.placement import Placement
from deepspec.publish import Out
from tests.given.heard import Heard
from tests.given.published.evaluated import QUESTIONS, Given, given

TURNS = sum(len(turns) for questions in QUESTIONS.values() for turns in questions)


def evaluate(case: Given, address: str = "b" * 32, **options: Any) -> tuple[Scores, dict[str, Any], Heard, Out]:
    spec = EvaluateSpec(
        target=case.target,
        benchmarks=case.benchmarks,
        **{"max_new_tokens": 12, "lossless_samples": 2, "untrained_samples": 2, **options},
    )
    out = Out(case.store, "scores", address, {"draft": case.draft.ref}, case.placement.scratch)
    heard = Heard()
    counts = run(spec, {"draft": case.draft}, out, case.placement, heard)
    return read_scores(out.file(SCORES)), counts, heard, out


@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "eagle3"])
def test_every_turn_is_scored_and_greedy_output_is_the_targets_own(algorithm: str, tmp_path: Path) -> None:
    scores, counts, heard, out = evaluate(given(tmp_path, algorithm=algorithm))
    assert scores.lossless is not None
    assert (scores.lossless.samples, scores.lossless.equal) == (2, 2)
    assert scores.overall["0.0"].samples == scores.overall["1.0"].samples == TURNS
    assert {each.benchmark for each in scores.benchmarks} == set(QUESTIONS)
    assert scores.untrained is not None
    assert 1.0 <= (scores.untrained.accepted_length.value or 0) < 2.0
    assert counts["accepted_length"]["0.0"] == scores.overall["0.0"].accepted_length.value
    assert bool(scores.calibration) == (algorithm == "dspark")
    assert heard.figures["acceptance"].startswith(b"\x89PNG")
    assert "untrained draft" in heard.texts["scores"]
    page = out.file("report.html").read_text()
    assert page.count("<img") == len(heard.figures)
    assert not re.search(r'(src|href)="https?:', page)
    assert heard.steps[-1][0] == heard.steps[-1][1]


def test_a_second_attempt_decodes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = given(tmp_path)
    first, *_ = evaluate(case)
    monkeypatch.setattr("deepspec.evaluate.evaluation.ask", lambda *_, **__: pytest.fail("decoded again"))
    second, *_ = evaluate(case)
    assert second == first


def test_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    case = given(tmp_path)
    together, *_ = evaluate(case)
    alone = Given(case.store, case.draft, case.target, case.benchmarks, case.placement.model_copy(update={"batch": 1}))
    assert evaluate(alone, "c" * 32)[0] == together


def test_small_benchmarks_are_decoded_as_one_and_scored_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, asked = given(tmp_path), list[int]()

    def counting(questions: list[Any], *given: Any, **more: Any) -> Any:
        asked.append(len(questions))
        return ask(questions, *given, **more)

    monkeypatch.setattr("deepspec.evaluate.evaluation.ask", counting)
    together, *_ = evaluate(case)
    assert asked == [5, 5, 2], "both benchmarks at each temperature, and some for the untrained draft"
    asked.clear()
    monkeypatch.setattr("deepspec.evaluate.run.alike", lambda shards, most: [[number] for number in range(len(shards))])
    assert evaluate(case, "c" * 32)[0] == together
    assert asked == [3, 2, 3, 2, 2]


def shard(role: ShardRole, temperature: float, count: int) -> Shard:
    question = BenchmarkQuestion(question_id="q", turns=("?",))
    return Shard(role=role, name=role, temperature=temperature, questions=(question,) * count)


def test_only_what_is_decoded_alike_is_decoded_as_one_and_no_more_than_a_shard_of_it() -> None:
    """A killed run loses what was not committed: no more questions than one shard has."""
    few = [shard("benchmark", 0.0, count) for count in (3, 3, 2, 1)]
    assert alike([*few, shard("benchmark", 1.0, 1), shard("untrained", 1.0, 1)], 8) == [[0, 1, 2], [3], [4], [5]]
    assert alike([shard("calibration", 0.0, 1)] * 2, 8) == [[0], [1]]
    assert alike([], 8) == []


def test_missing_places_are_told(tmp_path: Path) -> None:
    case = given(tmp_path)
    digest = case.target.digest
    nowhere = Placement(scratch=case.placement.scratch)
    with pytest.raises(SourceError, match="has no location on this machine"):
        evaluate(Given(case.store, case.draft, case.target, case.benchmarks, nowhere))
    places = {name: place for name, place in case.placement.locations.items() if name != digest}
    lost = Placement(scratch=case.placement.scratch, locations=places)
    with pytest.raises(TargetError, match=digest):
        evaluate(Given(case.store, case.draft, case.target, case.benchmarks, lost))


@pytest.mark.parametrize(
    ("temperatures", "wrong"), [((), "at least 1 item"), ((0.0, 1.0, 0.0), "twice"), ((-0.5,), "greater than or equal")]
)
def test_temperatures_that_would_count_nothing_or_double_are_refused(
    temperatures: tuple[float, ...], wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong):
        EvaluateOptions(temperatures=temperatures)

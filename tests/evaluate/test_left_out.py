"""Scores say what they rest on: questions for which the target has no room, answers that tell nothing, no check.

The tiny target reads 512 tokens; an answer of 12 and a round of 4 + 1 leave 495. A prompt has 19 tokens beside its
text, of which each letter is one.
"""

import json
from pathlib import Path

import pytest
import zstandard

from deepspec.artifacts import open_artifact
from deepspec.decoding.compare import compare_drafts, regressions
from deepspec.errors import SourceError, SpecError
from deepspec.evaluate import run as stage
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.formats.scores import LosslessCheck, Scores, read_scores, trace_rows
from deepspec.lines.rows import write_rows
from deepspec.page import scores as reports
from deepspec.page.tables import acceptance_rows, left_out, lossless_text
from deepspec.publish import Out
from tests.evaluate.test_run import evaluate
from tests.given.heard import Heard
from tests.given.published.evaluated import Given, given

LONG, LONGER, LONGEST = ["x" * 477], ["x" * 600], ["x" * 700]
"""One letter too much; far too much."""
FITS = ["x" * 476]
QUESTIONS = {"sums": [LONG, ["2+2?"], FITS], "talk": [LONGER, ["hello", "y" * 480, "and so on"], ["hi", "why?"]]}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return given(tmp_path_factory.mktemp("long"), QUESTIONS)


def test_what_is_left_out_is_told_wherever_the_scores_are(case: Given) -> None:
    scores, counts, heard, out = evaluate(case)
    told = [
        "sums: 1 of 3 turns were not asked, their prompts are longer than the 495 tokens that the target has room for "
        "beside an answer",
        "talk: 3 of 6 turns were not asked, their prompts are longer than the 495 tokens that the target has room for "
        "beside an answer",
    ]
    assert left_out(scores) == counts["left_out"] == told
    assert [f"left out: {each}" for each in told] == [each for each in heard.lines if each.startswith("left out")]
    assert reports.warnings(scores) == [f"Left out of the scores: {each}." for each in told]
    rows = [(row["benchmark"], row["samples"], row.get("turns left out")) for row in heard.tables["acceptance"]]
    assert rows == [
        *[("sums", 2, 1), ("talk", 3, 3)] * 2,
        *[("all", 5, 4)] * 2,
        ("untrained draft", 2, None),
    ]
    assert told[0] in out.file("report.md").read_text()


def test_it_is_told_before_anything_is_decoded(case: Given) -> None:
    *_, heard, _ = evaluate(case)
    assert heard.lines[:2] == [
        f"benchmark {name}: 1 of 3 questions will be left out, their prompts are longer than the 495 tokens that the "
        "target has room for"
        for name in ("sums", "talk")
    ]


def test_checks_take_questions_that_were_decoded(case: Given) -> None:
    """The first question of each benchmark has no room: two others are checked, none is spared."""
    scores, counts, *_ = evaluate(case)
    assert scores.lossless is not None
    assert scores.lossless.samples == counts["lossless_samples"] == 2
    warm, *_ = evaluate(case, "c" * 32, temperatures=(1.0,))
    assert warm.lossless is not None
    assert warm.untrained is not None
    assert (warm.lossless.samples, warm.untrained.samples) == (2, 2)


def test_nothing_is_left_out_where_all_fits(tmp_path: Path) -> None:
    scores, counts, heard, _ = evaluate(given(tmp_path, {"sums": [["2+2?"], FITS]}))
    assert left_out(scores) == counts["left_out"] == reports.warnings(scores) == []
    assert "turns left out" not in acceptance_rows(scores)[0]
    assert not [line for line in heard.lines if "left out" in line]


def test_a_benchmark_of_which_nothing_can_be_asked_ends_the_stage_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = given(tmp_path, {"sums": [["2+2?"]], "books": [LONGER, LONGEST]})
    monkeypatch.setattr("deepspec.evaluate.evaluation.load_pair", lambda *_, **__: pytest.fail("loaded the target"))
    wanted = (
        r"benchmark books: none of its 2 questions can be asked, their prompts have 619 to 719 tokens: the target "
        r"reads 512 tokens, 12 of them are kept for the answer \(evaluate\.max_new_tokens\) and 5 for a round, which "
        r"leaves 495; lower evaluate\.max_new_tokens, or leave the benchmark out"
    )
    with pytest.raises(SourceError, match=wanted):
        evaluate(case)
    spec = EvaluateSpec(target=case.target, benchmarks=case.benchmarks, max_new_tokens=12)
    out = Out(case.store, "scores", "d" * 32, {"draft": case.draft.ref}, case.placement.scratch)
    with pytest.raises(SourceError, match="benchmark books"):
        stage.shards(spec, {"draft": case.draft}, out, case.placement, Heard())


def test_an_answer_that_leaves_no_prompt_any_room_is_refused(case: Given) -> None:
    with pytest.raises(SpecError, match=r"the target reads 512 tokens, 600 of them .*: no prompt has room; lower"):
        evaluate(case, "e" * 32, max_new_tokens=600)


def test_a_shard_of_which_nothing_was_decoded_does_not_spoil_the_rest(case: Given) -> None:
    *_, out = evaluate(case, "f" * 32, shard_questions=1)
    ref = out.publish(EvaluateSpec(target=case.target, benchmarks=case.benchmarks), 3, {})
    scores = open_artifact(case.store, ref, case.placement.scratch)
    assert len([row for row in trace_rows(scores) if row["role"] == "benchmark"]) == 10
    assert compare_drafts(scores, scores)[0].samples == 5


def test_a_trace_file_without_a_row_is_read_as_none(tmp_path: Path, case: Given) -> None:
    out = Out(case.store, "scores", "9" * 32, {}, tmp_path)
    write_rows(out.file("traces-00000.jsonl.zst"), [])
    out.file("traces-00001.jsonl.zst").write_bytes(zstandard.compress(b'{"role": "benchmark"}\n'))
    ref = out.publish(EvaluateSpec(target=case.target, benchmarks=case.benchmarks), 2, {})
    assert list(trace_rows(open_artifact(case.store, ref, tmp_path))) == [{"role": "benchmark"}]


def test_answers_of_one_token_are_counted(case: Given) -> None:
    scores, counts, *_ = evaluate(case, "8" * 32, max_new_tokens=1, temperatures=(0.0,))
    assert [each.acceptance for each in scores.benchmarks] == [None, None]
    assert counts["left_out"][0] == "sums: 3 of 3 turns were answered with one token, which no round makes"


def test_a_check_of_no_sample_is_no_check() -> None:
    empty = LosslessCheck(samples=0, equal=0, ties=0, divergences=())
    good = LosslessCheck(samples=2, equal=2, ties=0, divergences=())
    bad = LosslessCheck(samples=2, equal=1, ties=0, divergences=())
    assert (empty.passed, good.passed, bad.passed) == (None, True, False)
    assert "not checked: no sample" in lossless_text(empty)
    assert regressions([], empty, bad) == regressions([], good, empty) == ()


def test_scores_of_version_1_are_read(case: Given, tmp_path: Path) -> None:
    """As they were written before: no sample checked, and nothing told of turns and room."""
    scores, *_ = evaluate(case)
    told = json.loads(scores.model_dump_json())
    del told["prompt_room"]
    told |= {"version": 1, "lossless": {"samples": 0, "equal": 0, "ties": 0, "divergences": []}}
    for each in told["benchmarks"]:
        del each["turns"], each["unscored"]
    for each in told["calibration"]:
        del each["fits"]
    (tmp_path / "scores.json").write_text(json.dumps(told))
    old = read_scores(tmp_path / "scores.json")
    assert isinstance(old, Scores)
    assert old.is_lossless is None
    assert left_out(old)[0] == "sums: 1 turns were not asked, their prompts are longer than the target reads"
    assert reports.sections(old, {"acceptance": b"", "reliability": b""})

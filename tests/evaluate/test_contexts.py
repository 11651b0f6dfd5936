"""Questions behind a long context: how prompts are filled, and what the scores tell of them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deepspec.evaluate.filled import INTRO, OUTRO, MaterialKind, filled, kind_of
from deepspec.evaluate.spec import EvaluateOptions
from deepspec.formats.questions import BenchmarkQuestion
from tests.evaluate.test_run import evaluate
from tests.given.published.evaluated import given

ASKED = BenchmarkQuestion(question_id="sums/0", turns=("what is it?", "and then?"))
TEXTS = ["one two three", "four", "what is it?"]
FRAME = len((INTRO + OUTRO).split()) + 3
"""Words around the material, those of the question among them."""


def words(text: str) -> int:
    return len(text.split())


def behind(length: int, kind: MaterialKind = "texts", seed: int = 0) -> Any:
    return filled(ASKED, kind, TEXTS, length, words, seed)


def test_a_prompt_is_filled_with_whole_lines_up_to_its_length() -> None:
    """Records have three words each: of 20 words beside the frame, six records take 18."""
    found = behind(FRAME + 20, "records")
    assert words(found.turns[0]) == FRAME + 18
    assert found.turns[0].startswith(INTRO)
    assert found.turns[0].endswith(OUTRO + "what is it?")
    assert len(found.turns) == 1
    assert found.question_id == f"context-{FRAME + 20}/records/sums/0"


def test_notes_are_the_other_questions_and_never_the_one_that_is_asked() -> None:
    """A round of both takes 4 + 2 words with their numbers."""
    lines = behind(FRAME + 12).turns[0].removeprefix(INTRO).removesuffix(OUTRO + "what is it?").split("\n")
    assert sorted(line.split(". ")[1] for line in lines) == ["four", "four", "one two three", "one two three"]
    assert [line.split(". ")[0] for line in lines] == ["1", "2", "3", "4"]


def test_material_is_a_function_of_seed_question_and_length() -> None:
    assert behind(200, "records") == behind(200, "records")
    assert behind(200, "records") != behind(200, "records", seed=1)


def test_a_question_that_is_longer_by_itself_stays_as_it_is() -> None:
    assert behind(4).turns == ASKED.turns[:1]


def test_kinds_take_turns_within_each_benchmark() -> None:
    """Of two benchmarks: first questions texts and records, second ones the other way round."""
    assert [kind_of(place, 2) for place in range(4)] == ["texts", "records", "records", "texts"]


def test_lengths_are_scored_with_intervals_and_those_without_room_are_counted(tmp_path: Path) -> None:
    scores, counts, heard, out = evaluate(
        given(tmp_path, algorithm="dflash"), contexts=(128, 200, 5000), context_samples=3, temperatures=(0.0,)
    )
    near, far, beyond = scores.contexts
    assert [each.length for each in scores.contexts] == [128, 200, 5000]
    assert near.prompt_tokens is not None
    assert far.prompt_tokens is not None
    assert 80 < near.prompt_tokens <= 128 < far.prompt_tokens <= 200
    assert (near.questions, near.too_long) == (far.questions, far.too_long) == (3, 0)
    assert far.acceptance is not None
    assert far.acceptance.accepted_length.low is not None
    assert (beyond.questions, beyond.too_long, beyond.acceptance) == (3, 3, None)
    assert counts["accepted_length_by_context"]["5000"] is None
    assert any("a context of 5000 tokens: 3 turns of 3 questions were not asked" in line for line in heard.lines)
    page = out.file("report.md").read_text()
    assert "By context" in page
    assert "a context of 5000 tokens" in page


def test_scores_say_nothing_of_contexts_where_none_is_asked(tmp_path: Path) -> None:
    _, counts, _, out = evaluate(given(tmp_path, algorithm="dflash"), temperatures=(0.0,))
    assert "accepted_length_by_context" not in counts
    assert "contexts" not in out.file("scores.json").read_text()


@pytest.mark.parametrize("contexts", [(200, 100), (100, 100), (0,)])
def test_lengths_out_of_order_are_refused(contexts: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"ascending order|greater than 0"):
        EvaluateOptions(contexts=contexts)

"""Near-duplicates and benchmark prompts are found by runs of words, whatever the order of the rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.prepare.contamination import BenchmarkPrompts
from deepspec.prepare.near import SignatureFile, near_duplicates, signature
from deepspec.prepare.text import run_hashes, tokens

STORY = "the quick brown fox jumps over the lazy dog and then it sleeps under an old oak tree until noon " * 3


def test_words_and_signs_are_tokens_without_case() -> None:
    assert list(tokens("What is 3+5?  Yes")) == ["what", "is", "3", "+", "5", "?", "yes"]
    assert list(tokens("猫が好き")) == ["猫", "が", "好", "き"]


def test_a_text_of_seven_words_has_three_runs_of_five() -> None:
    assert len(run_hashes(list("abcdefg"), 5)) == 3
    assert len(run_hashes(list("ab"), 5)) == 1
    assert len(run_hashes([], 5)) == 0


def test_signatures_agree_as_often_as_runs_are_shared() -> None:
    """60 words have 56 runs; the last word changed leaves 55 of 57 different runs in common."""
    words = [f"w{i}" for i in range(60)]
    one, other = signature(" ".join(words)), signature(" ".join([*words[:-1], "z"]))
    assert (one == other).mean() == pytest.approx(55 / 57, abs=0.06)
    assert (one == signature("nothing of the sort")).mean() < 0.05


def test_a_text_of_many_runs_has_the_signature_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"w{i}" for i in range(60)]
    whole = signature(" ".join(words))
    monkeypatch.setattr("deepspec.prepare.near._RUNS_AT_ONCE", 7)
    monkeypatch.setattr("deepspec.prepare.text._HELD", 20)
    assert (signature(" ".join(words)) == whole).all()


def _find(tmp_path: Path, texts: list[str], ranks: Sequence[int], threshold: float = 0.8) -> list[bool]:
    file = SignatureFile(tmp_path / "s.bin")
    for text in texts:
        file.add(signature(text))
    file.close()
    found: list[bool] = near_duplicates(file.read(), np.array(ranks, dtype=np.uint64), threshold).tolist()
    return found


def test_of_near_duplicates_the_lowest_rank_stays(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(200)]
    texts = [" ".join(words), "quite another text", " ".join([*words, "more"]), " ".join(["Well", *words])]
    assert _find(tmp_path, texts, [5, 1, 3, 9]) == [True, False, False, True]


def test_what_is_alike_in_form_only_stays(tmp_path: Path) -> None:
    texts = [f"Ana has {n} apples and buys {n + 3} more. How many apples does Ana have now?" for n in range(30)]
    assert not any(_find(tmp_path, texts, range(30)))


def test_no_rows_have_no_duplicates(tmp_path: Path) -> None:
    assert _find(tmp_path, [], []) == []


@settings(deadline=None, max_examples=40)
@given(st.text())
def test_every_text_has_a_signature(text: str) -> None:
    assert signature(text).shape == (112,)


def test_a_row_that_holds_a_prompt_is_found_and_one_that_shares_its_wrapping_is_not() -> None:
    wrapping = "Please reason step by step, and put your final answer within \\boxed{}."
    held_out = [f"A farmer in valley {n} has {n} cows and {n + 2} goats on {n} meadows. {wrapping}" for n in range(20)]
    index = BenchmarkPrompts(held_out, run=8, overlap=0.5)
    assert index.are_in([held_out[3]])
    assert index.are_in(["Tell me something.", "Hello! " + held_out[3].replace(wrapping, "Answer briefly.")])
    assert not index.are_in([f"A teacher buys chalk for all of her classes on Monday. {wrapping}"])


def test_a_prompt_is_found_in_a_text_too_long_to_hold_as_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepspec.prepare.text._HELD", 20)
    held_out = "A farmer in valley 3 has 7 cows and 9 goats on 5 meadows near the river."
    assert BenchmarkPrompts([held_out], run=8, overlap=0.5).are_in([f"{STORY} {held_out} {STORY}"])


def test_short_prompts_must_be_met_whole() -> None:
    index = BenchmarkPrompts(["What is two plus two?", "Why?", "Find the volume of a round sphere now."], 8, 0.5)
    assert index.are_in(["what is TWO plus two ?"])
    assert not index.are_in(["What is two plus three?"])
    assert not index.are_in(["Why?"]), "too short to say anything"
    assert not index.are_in(["Find the volume of a round cone now."])


@pytest.mark.parametrize("text", ["", "Why?", STORY])
def test_an_empty_index_finds_nothing(text: str) -> None:
    assert not BenchmarkPrompts([], 8, 0.5).are_in([text])

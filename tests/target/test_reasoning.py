"""Reasoning, inside the content or apart from it, is trained on as the target wrote it, or not at all."""

import pytest

from deepspec.errors import RowError
from tests.given.targets.tiny import answered
from tests.target.kinds import KINDS

INLINE = "<think>\nI add 0 and 3.\n</think>\n\n3."


def texts(name: str, row: dict[str, object]) -> list[tuple[str, str]]:
    """Return context and supervised text of each sample."""
    kind, found = KINDS[name], []
    decode = kind.tokenizer().decode
    for sample in kind.chat().render(row).samples:
        begin = sample.loss_mask.index(True)
        supervised = [token for token, on in zip(sample.input_ids, sample.loss_mask, strict=True) if on]
        found.append((decode(sample.input_ids[:begin]), decode(supervised)))
    return found


def reason(name: str, row: dict[str, object]) -> str:
    with pytest.raises(RowError) as caught:
        KINDS[name].chat().render(row)
    return caught.value.reason


@pytest.mark.parametrize("name", ["qwen3", "smollm3", "qwen2_5", "gemma"])
def test_reasoning_inside_the_content_is_the_answers_own(name: str) -> None:
    ((context, supervised),) = texts(name, answered("r", "0 and 3?", INLINE, thinking=True))
    assert supervised == INLINE + KINDS[name].stop
    assert "<think>" not in context


@pytest.mark.parametrize(
    "content",
    [
        "<think>\n\n  I add.  \n</think>\n\n\n\n3.  ",  # the template would strip these
        "<think>a</think>b<think>c</think>d",  # and keep c and d alone
        "I add.\n</think>\n\n3.",
        "3. <think>is it?</think>",
        "<think>\nI add 0 and",
    ],
)
def test_no_template_splits_or_strips_it(content: str) -> None:
    ((_, supervised),) = texts("qwen3", answered("r", "0 and 3?", content, thinking=True))
    assert supervised == content + "<|im_end|>"
    ((_, cut),) = texts("qwen3", answered("r", "0 and 3?", content, thinking=True, finish_reasons=["length"]))
    assert cut == content


def test_the_prompt_is_the_one_that_the_row_was_asked_with() -> None:
    ((context, supervised),) = texts("qwen3", answered("r", "0 and 3?", INLINE, thinking=False))
    assert context.endswith("<think>\n\n</think>\n\n")
    assert supervised == INLINE + "<|im_end|>"


def test_an_earlier_turn_is_what_the_engine_saw_of_it() -> None:
    first, second = texts(
        "qwen3", answered("r", "0 and 3?", INLINE, "And 4?", "<think>\nMore.\n</think>\n\n4.", thinking=True)
    )
    assert first[1] == INLINE + "<|im_end|>"
    assert "assistant\n3.<|im_end|>\n<|im_start|>user\nAnd 4?" in second[0]
    assert second[1] == "<think>\nMore.\n</think>\n\n4.<|im_end|>"


def test_reasoning_goes_on_behind_a_prompt_that_opened_it() -> None:
    for content in ("I add.\n</think>\n\n3.", "<think>\nI add.\n</think>\n\n3."):  # some servers put the mark back
        ((context, supervised),) = texts("deepseek_r1", answered("r", "0 and 3?", content))
        assert context.endswith("<|Assistant|><think>\n")
        assert supervised == "I add.\n</think>\n\n3.<|end_of_sentence|>"


def test_a_mark_that_does_not_join_the_prompt_is_refused() -> None:
    assert reason("deepseek_r1", answered("r", "0 and 3?", "<think>I add.</think>3.")) == "template_rewrites"


def test_an_answer_without_reasoning_is_not_put_inside_of_it() -> None:
    """The prompt opens the reasoning, and the server left it out: what the target saw before `3.` is not known."""
    assert reason("deepseek_r1", answered("r", "0 and 3?", "3.")) == "template_rewrites"


def test_an_empty_think_block_is_not_put_into_the_targets_mouth() -> None:
    assert reason("qwen3", answered("r", "0 and 3?", "3.", thinking=True)) == "template_rewrites"
    blank = answered("r", "0 and 3?", "3.", thinking=True, reasoning={"1": "\n\n"})
    assert texts("qwen3", blank)[0][1] == "<think>\n\n</think>\n\n3.<|im_end|>"


def test_reasoning_apart_is_rendered_before_the_content() -> None:
    row = answered("r", "0 and 3?", "3.", thinking=True, reasoning={"1": "I add."})
    assert texts("qwen3", row)[0][1] == "<think>\nI add.\n</think>\n\n3.<|im_end|>"
    channels = "<|channel|>analysis<|message|>I add.<|end|><|start|>assistant<|channel|>final<|message|>3.<|return|>"
    assert texts("gpt_oss", row)[0][1] == channels


@pytest.mark.parametrize("name", ["qwen2_5", "smollm3", "gemma", "mistral"])
def test_reasoning_that_the_template_leaves_out_is_not_trained_without(name: str) -> None:
    """The target wrote the content behind its reasoning: without that it is a context that it never saw."""
    row = answered("r", "0 and 3?", "3.", thinking=True, reasoning={"1": "I add."})
    assert reason(name, row) == "template_rewrites"


CUT = answered("r", "0 and 3?", "", thinking=True, reasoning={"1": "I add 0"}, finish_reasons=["length"])
ALL = answered("r", "0 and 3?", "", thinking=True, reasoning={"1": "The sum is 3."})


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "qwen2_5"])
def test_an_answer_cut_in_its_reasoning_is_not_closed_for_the_target(name: str) -> None:
    assert reason(name, CUT) == "cut_in_reasoning"


def test_with_the_engines_ids_it_is_what_these_say() -> None:
    ids = KINDS["qwen3"].tokenizer().encode("<think>\nI add 0")
    assert texts("qwen3", {**CUT, "token_ids": [ids]})[0][1] == "<think>\nI add 0"
    ids = KINDS["qwen3"].tokenizer().encode("<think>\nThe sum is 3.")
    assert texts("qwen3", {**ALL, "token_ids": [ids]})[0][1] == "<think>\nThe sum is 3.<|im_end|>"


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "qwen2_5"])
def test_all_of_an_answer_in_its_reasoning_is_refused(name: str) -> None:
    assert reason(name, ALL) == "only_reasoning"


def test_ids_that_lost_tokens_of_the_reasoning_are_not_used() -> None:
    ids = KINDS["qwen3"].tokenizer().encode("<think>\nI a\n</think>\n\n3.")
    row = answered("r", "0 and 3?", "3.", thinking=True, reasoning={"1": "I add."}, token_ids=[ids])
    assert texts("qwen3", row)[0][1] == "<think>\nI add.\n</think>\n\n3.<|im_end|>"


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_that_was_cut_before_its_first_word_supervises_nothing(name: str) -> None:
    row = answered("r", "0 and 3?", "", finish_reasons=["length"])
    expected = "template_rewrites" if KINDS[name].opens_reasoning else "nothing_supervised"
    assert reason(name, row) == expected

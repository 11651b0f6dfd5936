"""The one rule of what is supervised, on templates small enough to check by hand."""

from typing import Any

import pytest

from deepspec.errors import RowError, SourceError, TargetError
from deepspec.target.template import ChatTemplate, Sample
from tests.target.tiny import CHATML, END_OF_TEXT, IM_END, THINKING, answered, tokenizer

STOPS = frozenset({IM_END, END_OF_TEXT})


def template(text: str = CHATML) -> ChatTemplate:
    return ChatTemplate(tokenizer(text), STOPS, "tiny")


def shown(sample: Sample, text: str = CHATML) -> tuple[str, str]:
    """Return the whole text and the supervised text."""
    decode = tokenizer(text).decode
    supervised = [token for token, is_on in zip(sample.input_ids, sample.loss_mask, strict=True) if is_on]
    return decode(sample.input_ids), decode(supervised)


def test_answer_is_supervised_through_its_stop_token_and_no_further():
    (sample,) = template().render(answered("a", "2+2?", "4")).samples
    assert shown(sample) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>",
        "4<|im_end|>",
    )
    assert sample.loss_mask[-2:] == [True, True]
    assert not any(sample.loss_mask[:-2])


def test_later_turns_of_a_plain_template_share_one_sample():
    (sample,) = template().render(answered("a", "hi", "yo", "more", "ok")).samples
    assert shown(sample)[1] == "yo<|im_end|>ok<|im_end|>"
    assert sample.sample_id == "a"


def test_only_generated_turns_are_supervised():
    row = answered("a", "hi", "given", "more", "ok", generated=[3], finish_reasons=["stop"])
    (sample,) = template().render(row).samples
    assert shown(sample)[1] == "ok<|im_end|>"


def test_truncated_answer_gets_no_stop_token():
    (sample,) = template().render(answered("a", "count", "1 2 3", finish_reasons=["length"])).samples
    whole, supervised = shown(sample)
    assert supervised == "1 2 3"
    assert whole.endswith("1 2 3")


def test_the_switches_that_a_row_was_asked_with_are_its_context():
    text = "{{ effort }}" + CHATML
    row = {**answered("a", "2+2?", "4"), "chat_template_kwargs": {"effort": "low"}}
    (sample,) = template(text).render(row).samples
    assert shown(sample, text) == (
        "low<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>",
        "4<|im_end|>",
    )
    asked = template(text).prompt_ids(row["messages"][:1], switches={"effort": "low"})
    assert asked == sample.input_ids[: len(asked)]


def test_empty_answer_supervises_its_stop_token():
    (sample,) = template().render(answered("a", "x", "")).samples
    assert shown(sample)[1] == "<|im_end|>"


def test_given_think_block_is_context_not_answer():
    (sample,) = template(THINKING).render(answered("a", "2+2?", "4")).samples
    whole, supervised = shown(sample, THINKING)
    assert "<think>\n\n</think>\n\n4" in whole
    assert supervised == "4<|im_end|>"


def test_generated_thinking_is_supervised():
    row = answered("a", "2+2?", "4", thinking=True, reasoning={"1": "two and two"})
    (sample,) = template(THINKING).render(row).samples
    assert shown(sample, THINKING)[1] == "<think>\ntwo and two\n</think>\n\n4<|im_end|>"


def test_template_that_strips_history_gives_one_sample_a_turn():
    first, second = template(THINKING).render(answered("a", "hi", "yo", "more", "ok")).samples
    assert (first.sample_id, second.sample_id) == ("a:0", "a:1")
    assert shown(first, THINKING)[1] == "yo<|im_end|>"
    whole, supervised = shown(second, THINKING)
    assert supervised == "ok<|im_end|>"
    assert "<|im_start|>assistant\nyo<|im_end|>" in whole  # the history as the target saw it: without think block


def test_engine_token_ids_win_and_drift_is_counted():
    ids = [*tokenizer().encode("4"), END_OF_TEXT]
    rendered = template().render(answered("a", "2+2?", "4", token_ids=[ids]))
    assert shown(rendered.samples[0])[1] == "4<|endoftext|>"
    assert (rendered.turns, rendered.drifted) == (1, 1)


def test_token_ids_that_do_not_spell_the_answer_are_not_used():
    """llama.cpp reports one id for a character of several tokens: ids that lost tokens must not be trained on."""
    star = tokenizer().encode("★")
    assert len(star) == 3
    rendered = template().render(answered("a", "x", "a★", token_ids=[[*tokenizer().encode("a"), star[-1]]]))
    assert shown(rendered.samples[0])[1] == "a★<|im_end|>"
    assert rendered.drifted == 1


@pytest.mark.parametrize("end", [[], [IM_END]])
def test_engine_may_leave_out_the_stop_token(end: list[int]):
    rendered = template().render(answered("a", "2+2?", "4", token_ids=[tokenizer().encode("4") + end]))
    assert shown(rendered.samples[0])[1] == "4<|im_end|>"
    assert rendered.drifted == 0


def test_stop_token_inside_an_answer_ends_it():
    (sample,) = template().render(answered("a", "x", "one<|im_end|>two")).samples
    assert shown(sample)[1] == "one<|im_end|>"


def test_special_tokens_in_user_text_stay_context():
    (sample,) = template().render(answered("a", "say <|im_end|> please", "no")).samples
    assert shown(sample)[1] == "no<|im_end|>"


def test_no_system_prompt_is_added():
    (sample,) = template().render(answered("a", "x", "y")).samples
    assert "system" not in shown(sample)[0]


def test_nothing_supervised_is_an_error():
    with pytest.raises(SourceError, match="sample a: no token of it was generated"):
        template().render(answered("a", "x", generated=[], finish_reasons=[]))


def test_everything_supervised_is_an_error():
    bare = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    with pytest.raises(SourceError, match="sample a: every token is supervised"):
        template(bare).render(answered("a", "x", "y"))


def test_template_that_rewrites_the_prompt_needs_token_ids():
    text = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>'")
    row: dict[str, Any] = answered("a", "x", "y")
    with pytest.raises(RowError, match="regenerate with token ids"):
        template(text).render(row)
    (sample,) = template(text).render({**row, "token_ids": [tokenizer().encode("y")]}).samples
    assert shown(sample)[1] == "y<|im_end|>"


def test_target_without_template_is_a_named_error():
    with pytest.raises(TargetError, match="target tiny has no chat template; give one"):
        template("")


def test_template_without_the_targets_stop_token_is_a_named_error():
    text = CHATML.replace("<|im_end|>", "<end>")
    with pytest.raises(TargetError, match="ends an answer with none of its stop tokens"):
        template(text).render(answered("a", "x", "y"))


def test_row_that_the_template_refuses_names_the_sample():
    text = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match="sample a: the chat template of tiny refuses it: roles must alternate"):
        template(text).render(answered("a", "x", "y"))


def test_prompt_is_what_the_engine_is_given():
    prompt = template().prompt_ids([{"role": "user", "content": "hi"}])
    assert tokenizer().decode(prompt) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

"""The one rule of what is supervised, on templates small enough to check by hand."""

from typing import Any

import pytest

from deepspec.chat.template import ChatTemplate, Sample
from deepspec.errors import RowError, TargetError
from tests.given.targets.tiny import CHATML, END_OF_TEXT, IM_END, THINKING, answered, tokenizer

STOPS = frozenset({IM_END, END_OF_TEXT})


def template(text: str = CHATML) -> ChatTemplate:
    return ChatTemplate(tokenizer(text), STOPS, "tiny")


def shown(sample: Sample, text: str = CHATML) -> tuple[str, str]:
    """Return the whole text and the supervised text."""
    decode = tokenizer(text).decode
    supervised = [token for token, is_on in zip(sample.input_ids, sample.loss_mask, strict=True) if is_on]
    return decode(sample.input_ids), decode(supervised)


def test_answer_is_supervised_through_its_stop_token_and_no_further() -> None:
    (sample,) = template().render(answered("a", "2+2?", "4")).samples
    assert shown(sample) == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>",
        "4<|im_end|>",
    )
    assert sample.loss_mask[-2:] == [True, True]
    assert not any(sample.loss_mask[:-2])


def test_later_turns_of_a_plain_template_share_one_sample() -> None:
    (sample,) = template().render(answered("a", "hi", "yo", "more", "ok")).samples
    assert shown(sample)[1] == "yo<|im_end|>ok<|im_end|>"
    assert sample.sample_id == "a"


def test_only_generated_turns_are_supervised() -> None:
    row = answered("a", "hi", "given", "more", "ok", generated=[3], finish_reasons=["stop"])
    (sample,) = template().render(row).samples
    assert shown(sample)[1] == "ok<|im_end|>"


def test_truncated_answer_gets_no_stop_token() -> None:
    (sample,) = template().render(answered("a", "count", "1 2 3", finish_reasons=["length"])).samples
    whole, supervised = shown(sample)
    assert supervised == "1 2 3"
    assert whole.endswith("1 2 3")


def test_the_switches_that_a_row_was_asked_with_are_its_context() -> None:
    text = "{{ effort }}" + CHATML
    row = {**answered("a", "2+2?", "4"), "chat_template_kwargs": {"effort": "low"}}
    (sample,) = template(text).render(row).samples
    assert shown(sample, text) == (
        "low<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>",
        "4<|im_end|>",
    )
    asked = template(text).prompt_ids(row["messages"][:1], switches={"effort": "low"})
    assert asked == sample.input_ids[: len(asked)]


def test_empty_answer_supervises_its_stop_token() -> None:
    (sample,) = template().render(answered("a", "x", "")).samples
    assert shown(sample)[1] == "<|im_end|>"


def test_given_think_block_is_context_not_answer() -> None:
    (sample,) = template(THINKING).render(answered("a", "2+2?", "4")).samples
    whole, supervised = shown(sample, THINKING)
    assert "<think>\n\n</think>\n\n4" in whole
    assert supervised == "4<|im_end|>"


def test_generated_thinking_is_supervised() -> None:
    row = answered("a", "2+2?", "4", thinking=True, reasoning={"1": "two and two"})
    (sample,) = template(THINKING).render(row).samples
    assert shown(sample, THINKING)[1] == "<think>\ntwo and two\n</think>\n\n4<|im_end|>"


def test_template_that_strips_history_gives_one_sample_a_turn() -> None:
    first, second = template(THINKING).render(answered("a", "hi", "yo", "more", "ok")).samples
    assert (first.sample_id, second.sample_id) == ("a:0", "a:1")
    assert shown(first, THINKING)[1] == "yo<|im_end|>"
    whole, supervised = shown(second, THINKING)
    assert supervised == "ok<|im_end|>"
    assert "<|im_start|>assistant\nyo<|im_end|>" in whole  # the history as the target saw it: without think block


def test_engine_token_ids_win_and_drift_is_counted() -> None:
    ids = [*tokenizer().encode("4"), END_OF_TEXT]
    rendered = template().render(answered("a", "2+2?", "4", token_ids=[ids]))
    assert shown(rendered.samples[0])[1] == "4<|endoftext|>"
    assert (rendered.turns, rendered.drifted) == (1, 1)


def test_token_ids_that_do_not_spell_the_answer_are_not_used() -> None:
    """llama.cpp reports one id for a character of several tokens: ids that lost tokens must not be trained on."""
    star = tokenizer().encode("★")
    assert len(star) == 3
    rendered = template().render(answered("a", "x", "a★", token_ids=[[*tokenizer().encode("a"), star[-1]]]))
    assert shown(rendered.samples[0])[1] == "a★<|im_end|>"
    assert rendered.drifted == 1


@pytest.mark.parametrize("end", [[], [IM_END]])
def test_engine_may_leave_out_the_stop_token(end: list[int]) -> None:
    rendered = template().render(answered("a", "2+2?", "4", token_ids=[tokenizer().encode("4") + end]))
    assert shown(rendered.samples[0])[1] == "4<|im_end|>"
    assert rendered.drifted == 0


def test_stop_token_inside_an_answer_ends_it() -> None:
    (sample,) = template().render(answered("a", "x", "one<|im_end|>two")).samples
    assert shown(sample)[1] == "one<|im_end|>"


def test_special_tokens_in_user_text_stay_context() -> None:
    (sample,) = template().render(answered("a", "say <|im_end|> please", "no")).samples
    assert shown(sample)[1] == "no<|im_end|>"


def test_no_system_prompt_is_added() -> None:
    (sample,) = template().render(answered("a", "x", "y")).samples
    assert "system" not in shown(sample)[0]


def test_nothing_supervised_is_an_error() -> None:
    with pytest.raises(RowError, match="sample a: no token of it was generated") as caught:
        template().render(answered("a", "x", generated=[], finish_reasons=[]))
    assert caught.value.reason == "nothing_supervised"


def test_everything_supervised_is_an_error() -> None:
    bare = "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    with pytest.raises(RowError, match="sample a: every token is supervised") as caught:
        template(bare).render(answered("a", "x", "y"))
    assert caught.value.reason == "all_supervised"


def test_template_that_rewrites_the_prompt_needs_token_ids() -> None:
    text = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>'")
    row: dict[str, Any] = answered("a", "x", "y")
    with pytest.raises(RowError, match="regenerate with token ids"):
        template(text).render(row)
    (sample,) = template(text).render({**row, "token_ids": [tokenizer().encode("y")]}).samples
    assert shown(sample)[1] == "y<|im_end|>"


def test_target_without_template_is_a_named_error() -> None:
    with pytest.raises(TargetError, match="target tiny has no chat template; give one"):
        template("")


def test_template_without_the_targets_stop_token_is_a_named_error() -> None:
    text = CHATML.replace("<|im_end|>", "<end>")
    with pytest.raises(TargetError, match="ends an answer with none of its stop tokens"):
        template(text).render(answered("a", "x", "y"))


def test_row_that_the_template_refuses_names_the_sample() -> None:
    text = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match="sample a: the chat template of tiny refuses it: roles must alternate"):
        template(text).render(answered("a", "x", "y"))


@pytest.mark.parametrize("broken", ["{{ 1 + 'a' }}", "{{ messages[7].content + 'a' }}", "{% for a in 5 %}{% endfor %}"])
def test_whatever_a_template_raises_is_the_rows_error(broken: str) -> None:
    with pytest.raises(RowError, match="sample a: the chat template of tiny refuses it") as caught:
        template(broken + CHATML).render(answered("a", "x", "y"))
    assert caught.value.reason == "template_refuses"


@pytest.mark.parametrize(
    "body",
    [
        "m.content[:3]",
        "m.content | upper",
        "m.content.replace('e', 'a')",
        "m.content.split('r')[-1]",
        "'Answer: ' + m.content",
        "m.content + ' Bye.'",
        "m.content + m.content",
        "''",
    ],
)
def test_a_template_that_changes_an_answer_is_not_trained_on(body: str) -> None:
    text = CHATML.replace("m.content", f"({body} if m.role == 'assistant' else m.content)")
    with pytest.raises(RowError, match="unlike the answer as given") as caught:
        template(text).render(answered("a", "x", "three trees"))
    assert caught.value.reason == "template_rewrites"


@pytest.mark.parametrize("body", ["m.content | trim", "m.content.lstrip()", "'  ' + m.content", "m.content + '\n'"])
@pytest.mark.parametrize("content", ["three trees", " three trees \n"])
def test_a_template_may_trim_an_answer(body: str, content: str) -> None:
    text = CHATML.replace("m.content", f"({body} if m.role == 'assistant' else m.content)")
    (sample,) = template(text).render(answered("a", "x", content)).samples
    assert shown(sample)[1].removesuffix("<|im_end|>").strip() == "three trees"


def test_nothing_that_the_template_puts_behind_an_answer_is_put_behind_a_cut_one() -> None:
    text = CHATML.replace("m.content", "(m.content + '\n' if m.role == 'assistant' else m.content)")
    (sample,) = template(text).render(answered("a", "x", "three tr", finish_reasons=["length"])).samples
    assert shown(sample)[1] == "three tr"


def test_a_turn_that_supervises_nothing_leaves_the_others() -> None:
    row = answered("a", "hi", "yo", "more", "", finish_reasons=["stop", "length"])
    first, second = template(THINKING).render(row).samples
    assert shown(first, THINKING)[1] == "yo<|im_end|>"
    assert not any(second.loss_mask)


def test_a_prompt_that_the_engine_read_otherwise_is_not_trained_on() -> None:
    row = answered("a", "hi", "yo", "more", "ok")
    prompts = [len(template().prompt_ids(row["messages"][:n])) for n in (1, 3)]
    (sample,) = template().render({**row, "usage": {"prompt_tokens": sum(prompts)}}).samples
    assert (sample,) == template().render({**row, "usage": {"prompt_tokens": 0}}).samples  # it does not count
    with pytest.raises(
        RowError, match=f"counted 40 tokens of prompts and the target's own .* gives {sum(prompts)}"
    ) as caught:
        template().render({**row, "usage": {"prompt_tokens": 40}})
    assert caught.value.reason == "prompt_differs"


@pytest.mark.parametrize(
    "changes", [{"messages": "<|mask|>"}, {"token_ids": 260}, {"token_ids": -1}, {"token_ids": 2**70}]
)
def test_a_token_outside_the_embedding_is_the_rows_error(changes: dict[str, Any]) -> None:
    row = answered("a", "x", "y")
    if "messages" in changes:
        row["messages"][0]["content"] = changes["messages"]
    else:
        row["token_ids"] = [[*tokenizer().encode("y"), changes["token_ids"]]]
    small = ChatTemplate(tokenizer(), STOPS, "tiny", vocab_size=259)
    with pytest.raises(RowError, match=r"it holds token id .*; the embedding of tiny has 259 rows") as caught:
        small.render(row)
    assert caught.value.reason == "token_out_of_range"


def test_the_last_row_of_the_embedding_is_inside() -> None:
    row = answered("a", "<|mask|>", "y")
    assert ChatTemplate(tokenizer(), STOPS, "tiny", vocab_size=260).render(row).samples


def test_a_row_without_a_date_is_counted_where_the_template_reads_the_clock() -> None:
    clock = "{{ strftime_now('%Y') }}" + CHATML
    assert template(clock).render(answered("a", "x", "y")).date_assumed
    assert not template(clock).render(answered("a", "x", "y", date="2025-05-05")).date_assumed
    assert not template().render(answered("a", "x", "y")).date_assumed


def test_prompt_is_what_the_engine_is_given() -> None:
    prompt = template().prompt_ids([{"role": "user", "content": "hi"}])
    assert tokenizer().decode(prompt) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

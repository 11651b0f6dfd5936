"""Templates of today, by what they do: each gets the mask of docs/formats/loss_mask.md, or says which turn breaks."""

from pathlib import Path

import pytest

from deepspec.chat.template import ChatTemplate
from deepspec.errors import RowError, TargetError
from deepspec.target.tokens import read_chat, read_tokenizer
from tests.given.targets import tiny
from tests.given.targets.tiny import CHATML, IM_END, answered
from tests.given.targets.tiny import tokenizer as tiny_tokenizer
from tests.target.kinds import KINDS

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}


def texts(name: str, row: dict[str, object]) -> list[tuple[str, list[str]]]:
    """Return the whole text of each sample, and each of its supervised stretches."""
    kind, found = KINDS[name], []
    decode = kind.tokenizer().decode
    for sample in kind.chat().render(row).samples:
        stretches: list[list[int]] = []
        for place, (token, on) in enumerate(zip(sample.input_ids, sample.loss_mask, strict=True)):
            if on and not (place and sample.loss_mask[place - 1]):
                stretches.append([])
            if on:
                stretches[-1].append(token)
        found.append((decode(sample.input_ids), [decode(each) for each in stretches]))
    return found


def called(content: str = "", **changes: object) -> dict[str, object]:
    """A question, a call, its result, and an answer to that; both are generated."""
    row = answered("r", "Warm?", content, tools=TOOLS, generated=[1, 3], finish_reasons=["tool_calls", "stop"])
    messages = row["messages"]
    assert isinstance(messages, list)
    messages[1]["tool_calls"] = [CALL]
    messages += [
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "21"},
        {"role": "assistant", "content": "It is."},
    ]
    return {**row, **changes}


TWO_TURNS = {
    "qwen2_5": [["4<|im_end|>", "Sum.<|im_end|>"]],
    "qwen3": [["4<|im_end|>"], ["Sum.<|im_end|>"]],  # strips its think block from history: a sample each
    "llama2": [[" 4 </s>", " Sum. </s>"]],
    "zephyr": [["4</s>", "Sum.</s>"]],
    "phi3": [["4<|end|>", "Sum.<|end|>"]],
    "phi4": [["4<|im_end|>", "Sum.<|im_end|>"]],
    "glm4_5": [["\n4<|user|>", "\nSum.<|user|>"]],
    "olmo2": [["4<|endoftext|>", "Sum.<|endoftext|>"]],
    "exaone": [["4[|endofturn|]", "Sum.[|endofturn|]"]],
    "kimi_k2": [["4<|im_end|>", "Sum.<|im_end|>"]],
    "nemotron": [["4<|im_end|>", "Sum.<|im_end|>"]],
    "lfm2": [["4<|im_end|>", "Sum.<|im_end|>"]],
    "seed_oss": [["4<seed:eos>", "Sum.<seed:eos>"]],
    "ernie4_5": [["4<|end_of_sentence|>", "Sum.<|end_of_sentence|>"]],
    "smolvlm": [[" 4<end_of_utterance>", " Sum.<end_of_utterance>"]],
    "qwen2_5_vl": [["4<|im_end|>", "Sum.<|im_end|>"]],
    "gemma": [["4<end_of_turn>", "Sum.<end_of_turn>"]],
    "gemma3": [["4<end_of_turn>", "Sum.<end_of_turn>"]],
    "gemma4": [["4<turn|>", "Sum.<turn|>"]],
    "deepseek_v3": [["4<|end_of_sentence|>", "Sum.<|end_of_sentence|>"]],
    "deepseek_v3_1": [["4<|end_of_sentence|>", "Sum.<|end_of_sentence|>"]],
    "falcon3": [["4<|endoftext|>", "Sum.<|endoftext|>"]],
    "yi": [["4<|im_end|>", "Sum.<|im_end|>"]],
}


@pytest.mark.parametrize("name", TWO_TURNS)
def test_two_turns_are_supervised_through_their_stop_tokens(name: str) -> None:
    row = answered("r", "2+2?", "4", "Why?", "Sum.")
    assert [stretches for _, stretches in texts(name, row)] == TWO_TURNS[name]


@pytest.mark.parametrize(
    "name", sorted(name for name, kind in KINDS.items() if kind.system and not kind.opens_reasoning)
)
def test_what_the_system_says_is_context_of_every_kind(name: str) -> None:
    row = answered("r", "2+2?", "4")
    messages = [{"role": "system", "content": "Be terse."}, *row["messages"]]
    ((whole, stretches),) = texts(name, {**row, "messages": messages, "generated": [2]})
    assert "Be terse." in whole
    assert len(stretches) == 1
    assert "Be terse." not in stretches[0]


def test_a_system_role_that_is_refused_costs_its_row() -> None:
    row = answered("r", "2+2?", "4")
    messages = [{"role": "system", "content": "Be terse."}, *row["messages"]]
    with pytest.raises(RowError, match=r"sample r: .*System role not supported") as caught:
        KINDS["gemma"].chat().render({**row, "messages": messages, "generated": [2]})
    assert caught.value.reason == "template_refuses"


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_an_order_of_roles_that_is_refused_costs_its_row_and_is_said(name: str) -> None:
    row = answered("r", "2+2?", "4")
    messages = [{"role": "user", "content": "Hello?"}, *row["messages"]]
    with pytest.raises(RowError, match=r"sample r: .*roles must alternate user/assistant") as caught:
        KINDS[name].chat().render({**row, "messages": messages, "generated": [2]})
    assert caught.value.reason == "template_refuses"


def test_the_rule_holds_for_twenty_families_and_more() -> None:
    assert len(KINDS) >= 20
    assert set(TWO_TURNS) <= set(KINDS)
    assert len(TWO_TURNS) >= 20


def test_an_answer_that_no_sign_ends_ends_with_the_next_speakers() -> None:
    """GLM generates the user's sign behind text, and the sign of a result behind a call."""
    ((whole, stretches),) = texts("glm4_5", called())
    call = "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n</tool_call>"
    assert stretches == [f"{call}<|observation|>", "\nIt is.<|user|>"]
    assert f"{call}<|observation|>\n<tool_response>\n21\n" in whole  # once: the sign that was generated is the result's


def test_of_an_engine_that_leaves_it_out_the_sign_is_put_back_by_what_was_said() -> None:
    said = "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n</tool_call>"
    encode = KINDS["glm4_5"].tokenizer().encode
    ids = [encode(said), encode("\nIt is.")]
    ((_, stretches),) = texts("glm4_5", called(token_ids=ids))
    assert stretches == [f"{said}<|observation|>", "\nIt is.<|user|>"]


def test_a_stop_token_before_the_answer_ends_none() -> None:
    """OLMo's begins the conversation, too: a template that leaves it out behind answers ends them with nothing."""
    tokenizer = KINDS["olmo2"].tokenizer()
    tokenizer.chat_template = KINDS["olmo2"].template.replace("message.content + eos_token", "message.content")
    stop = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    chat = ChatTemplate(tokenizer, frozenset({stop}), "olmo2")
    with pytest.raises(TargetError, match="ends an answer with none of its stop tokens"):
        _ = chat.stop_id


def test_contents_are_parts_where_the_template_reads_parts() -> None:
    row = answered("r", "2+2?", "4")
    assert texts("smolvlm", row)[0][0] == "<|im_start|>User: 2+2?<end_of_utterance>\nAssistant: 4<end_of_utterance>"
    assert "user\n2+2?<|im_end|>" in texts("qwen2_5_vl", row)[0][0]


def test_a_target_whose_template_reads_parts_is_no_bad_target(tmp_path: Path) -> None:
    tiny.write_target(tmp_path, KINDS["smolvlm"].template)
    chat = read_chat(tmp_path, read_tokenizer(tmp_path))
    assert "User: hi" in tiny_tokenizer().decode(chat.prompt_ids([{"role": "user", "content": "hi"}]))


@pytest.mark.parametrize("name", ["qwen2_5", "kimi_k2"])
def test_text_before_a_call_stays_before_it(name: str) -> None:
    ((_, (first, _)),) = texts(name, called("Let me see."))
    assert first.startswith("Let me see.")
    assert "weather" in first


def test_text_that_a_template_moves_behind_a_call_is_not_trained_there() -> None:
    assert texts("gemma4", called())[0][1][0] == '<|tool_call>call:weather{"city": "Bern"}<tool_call|><|tool_response>'
    with pytest.raises(RowError, match="sample r: turn 1 of 2: the chat template of gemma4 renders an answered turn"):
        KINDS["gemma4"].chat().render(called("Let me see."))


def test_reasoning_goes_on_behind_a_prompt_that_opens_it() -> None:
    row = answered("r", "2+2?", "4", thinking=True, reasoning={"1": "Two."})
    assert [texts(name, row)[0][1] for name in ("minimax_m2", "nemotron", "seed_oss", "glm4_5")] == [
        ["Two.\n</think>\n\n4[e~["],
        ["Two.\n</think>\n4<|im_end|>"],
        ["<seed:think>Two.</seed:think>4<seed:eos>"],
        ["\n<think>Two.</think>\n4<|user|>"],
    ]


def test_a_prompt_that_closes_the_reasoning_at_once_is_context() -> None:
    for name, prompt in {
        "nemotron": "<think></think>",
        "deepseek_v3_1": "</think>",
        "glm4_5": "<think></think>",
    }.items():
        ((whole, stretches),) = texts(name, answered("r", "2+2?", "4"))
        assert prompt in whole
        assert "think" not in stretches[0]


def test_a_switch_of_another_name_is_the_rows() -> None:
    row = answered("r", "2+2?", "Two.\n</think>4", chat_template_kwargs={"thinking": True})
    ((whole, stretches),) = texts("deepseek_v3_1", row)
    assert "<|Assistant|><think>Two." in whole
    assert stretches == ["Two.\n</think>4<|end_of_sentence|>"]


@pytest.mark.parametrize(
    ("name", "row", "turn"),
    [
        ("qwen3", answered("r", "a?", "b", "c?", "d", thinking=True, reasoning={"1": "x"}), "turn 2 of 2: "),
        ("qwen2_5", answered("r", "a?", "b", "c?", "d", "e?", "f", reasoning={"3": "x"}), "turn 2 of 3: "),
        ("minimax_m2", answered("r", "a?", "b"), ""),
    ],
)
def test_the_turn_that_breaks_is_said(name: str, row: dict[str, object], turn: str) -> None:
    with pytest.raises(RowError, match=f"^sample r: {turn}the chat template of {name} renders an answered turn"):
        KINDS[name].chat().render(row)


def test_what_a_template_marks_as_generated_is_what_is_supervised() -> None:
    row = answered("r", "2+2?", "4", "Why?", "Sum.")
    (sample,) = KINDS["yi"].chat().render(row).samples
    marked = (
        KINDS["yi"]
        .tokenizer()
        .apply_chat_template(row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    )
    count = len(sample.input_ids)
    assert marked["input_ids"][:count] == sample.input_ids
    assert [bool(on) for on in marked["assistant_masks"][:count]] == sample.loss_mask
    assert not any(marked["assistant_masks"][count:])


def test_a_template_file_beside_the_tokenizer_goes_before_the_one_inside(tmp_path: Path) -> None:
    tiny.write_target(tmp_path, "{{ 'inside ' + messages[0].content }}")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert read_chat(tmp_path, read_tokenizer(tmp_path)).stop_id == IM_END


def test_of_named_templates_the_one_for_tools_serves_conversations_with_tools() -> None:
    tokenizer = KINDS["qwen2_5"].tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "TOOLS " + CHATML, "rag": "RAG " + CHATML}
    chat = ChatTemplate(tokenizer, frozenset({tokenizer.convert_tokens_to_ids("<|im_end|>")}), "named")
    row = answered("r", "2+2?", "4")
    plain, tooled = chat.render(row).samples[0], chat.render({**row, "tools": TOOLS}).samples[0]
    assert tokenizer.decode(plain.input_ids).startswith("<|im_start|>user")
    assert tokenizer.decode(tooled.input_ids).startswith("TOOLS <|im_start|>user")
    assert sum(plain.loss_mask) == sum(tooled.loss_mask) == 2


def test_a_header_that_the_prompt_leaves_open_is_the_answers() -> None:
    """The target says to whom it speaks; engines take that out of the text."""
    text = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + (' to=user' if m.role == 'assistant' else '') + '<|mask|>'"
        " + m.content + '<|im_end|>' }}{% endfor %}{{ '<|im_start|>assistant' if add_generation_prompt }}"
    )
    chat = ChatTemplate(tiny_tokenizer(text), frozenset({IM_END}), "open")
    (sample,) = chat.render(answered("r", "2+2?", "4")).samples
    supervised = [token for token, on in zip(sample.input_ids, sample.loss_mask, strict=True) if on]
    assert tiny_tokenizer().decode(supervised) == " to=user<|mask|>4<|im_end|>"

"""Arguments of calls are an object in a template and text on the wire, whoever made the row."""

from typing import Any

import pytest

from deepspec.chat.template import ChatTemplate
from deepspec.chat.tool_calls import shown
from deepspec.errors import RowError
from tests.given.targets import tiny
from tests.given.targets.tiny import IM_END, answered
from tests.target.kinds import KINDS, Kind

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
BERN = '{"city": "Bern"}'
PRINTS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
)


def call(arguments: object = BERN, name: str = "weather", **more: object) -> dict[str, object]:
    return {"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def row(*calls: dict[str, object], content: str = "", **changes: Any) -> dict[str, Any]:
    """One question, answered by calls."""
    found = answered("r", "How warm is it?", content, tools=TOOLS, finish_reasons=["tool_calls"])
    found["messages"][1]["tool_calls"] = list(calls)
    return {**found, **changes}


def history(*calls: dict[str, object]) -> dict[str, Any]:
    """The same with a result, and an answer to that: only this is generated."""
    found = row(*calls, generated=[3], finish_reasons=["stop"])
    result = {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": '{"degrees": 21}'}
    found["messages"] += [result, {"role": "assistant", "content": "21 degrees."}]
    return found


def texts(kind: Kind, given: dict[str, object]) -> tuple[str, str]:
    """Return the whole text and the supervised text of a row of one sample."""
    (sample,) = kind.chat().render(given).samples
    supervised = [token for token, on in zip(sample.input_ids, sample.loss_mask, strict=True) if on]
    return kind.tokenizer().decode(sample.input_ids), kind.tokenizer().decode(supervised)


def reason(given: dict[str, object], kind: str = "qwen2_5") -> str:
    with pytest.raises(RowError) as caught:
        KINDS[kind].chat().render(given)
    return caught.value.reason


RENDERED = {
    "qwen2_5": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
    "qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n</function>\n</tool_call>",
    "llama3_1": '{"name": "weather", "parameters": {"city": "Bern"}}',
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
    "deepseek_v3": '<|tool_sep|>weather\n```json\n{"city": "Bern"}\n```<|tool_call_end|>',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bern"}, "id": "abcdefghi"}]',
    "granite": '<|tool_call|>[{"name": "weather", "arguments": {"city": "Bern"}}]',
    "gpt_oss": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Bern"}<|call|>',
    "cohere": '"tool_name": "weather", "parameters": {"city": "Bern"}}',
}


@pytest.mark.parametrize("name", RENDERED)
@pytest.mark.parametrize("arguments", [BERN, {"city": "Bern"}, '{"city":"Bern"}'], ids=["text", "object", "compact"])
def test_a_call_is_supervised_as_the_template_writes_objects(name: str, arguments: object) -> None:
    supervised = texts(KINDS[name], row(call(arguments)))[1]
    wanted = RENDERED[name]
    if name == "deepseek_v3" and arguments == '{"city":"Bern"}':  # written for text: word for word
        wanted = wanted.replace('{"city": "Bern"}', '{"city":"Bern"}')
    assert wanted in supervised
    assert supervised.endswith(KINDS[name].stop if name != "gpt_oss" else "<|call|>")


@pytest.mark.parametrize("name", RENDERED)
def test_a_call_before_the_answer_is_context_in_the_same_form(name: str) -> None:
    whole, supervised = texts(KINDS[name], history(call()))
    assert RENDERED[name] in whole
    assert "weather" not in supervised
    assert supervised.strip().endswith(f"21 degrees.{KINDS[name].footer}{KINDS[name].stop}")


def test_the_row_itself_stays_as_it_is() -> None:
    given = history(call())
    before = repr(given)
    KINDS["qwen2_5"].chat().render(given)
    assert repr(given) == before


@pytest.mark.parametrize("arguments", ["", "  ", None, {}, "{}"])
def test_no_arguments_are_an_empty_object(arguments: object) -> None:
    assert '"arguments": {}}' in texts(KINDS["qwen2_5"], row(call(arguments)))[1]
    assert "```json\n{}\n```" in texts(KINDS["deepseek_v3"], row(call(arguments)))[1]
    assert "<function=weather>\n</function>" in texts(KINDS["qwen3_coder"], row(call(arguments)))[1]


def test_calls_in_parallel_are_all_there_in_their_order() -> None:
    supervised = texts(KINDS["qwen2_5"], row(call('{"city": "Bern"}'), call('{"city": "Basel"}', "wind")))[1]
    assert supervised.index("Bern") < supervised.index('"wind"') < supervised.index("Basel")
    assert reason(row(call(), call()), "llama3_1") == "template_refuses"
    for second in (call('{"city": "Basel"}'), call(""), call()):
        assert reason(row(call(), second), "gpt_oss") == "template_rewrites"  # renders the first alone


@pytest.mark.parametrize("arguments", ["[1]", "5", "Bern", '{"city": ', "[" * 100_000, 7, ["Bern"]])
def test_arguments_that_are_no_object_are_the_rows_error(arguments: object) -> None:
    assert reason(row(call(arguments))) == "bad_tools"
    assert reason(history(call(arguments))) == "bad_tools"


def test_the_engines_ids_settle_a_call_that_no_template_renders() -> None:
    kind = KINDS["qwen2_5"]
    said = '<tool_call>\n{"name": "weather", "arguments": {"city": \n</tool_call>'
    ids = kind.tokenizer().encode(said)
    assert texts(kind, row(call('{"city": '), token_ids=[ids]))[1] == said + "<|im_end|>"


def test_a_call_that_a_later_prompt_needs_is_not_settled_by_ids() -> None:
    kind = KINDS["qwen2_5"]
    ids = [kind.tokenizer().encode("weather"), kind.tokenizer().encode("21 degrees.")]
    later = {**history(call("Bern")), "generated": [1, 3], "finish_reasons": ["tool_calls", "stop"], "token_ids": ids}
    assert reason(later) == "bad_tools"


def test_a_template_that_prints_arguments_is_given_text() -> None:
    chat = ChatTemplate(tiny.tokenizer(PRINTS), frozenset({IM_END}), "prints")
    assert "{'city'" not in tiny.tokenizer().decode(chat.prompt_ids(history(call())["messages"][:3]))
    assert BERN in tiny.tokenizer().decode(chat.prompt_ids(history(call({"city": "Bern"}))["messages"][:3]))


def test_a_template_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = KINDS["deepseek_v3"].chat()
    asked = list[object]()

    def noted(render: object) -> bool:
        asked.append(render)
        return True

    monkeypatch.setattr("deepspec.chat.rendering.reads_text", noted)
    for _ in range(3):
        chat.render(row(call()))
    assert len(asked) == 1


def test_of_two_templates_each_is_probed() -> None:
    tokenizer = KINDS["qwen2_5"].tokenizer()
    tokenizer.chat_template = {"default": KINDS["deepseek_v3"].template, "tool_use": KINDS["qwen2_5"].template}
    chat = ChatTemplate(tokenizer, frozenset({IM_END}), "two")
    assert RENDERED["qwen2_5"] in tokenizer.decode(chat.prompt_ids(history(call())["messages"][:3], tools=TOOLS))
    assert "```json\n" + BERN in tokenizer.decode(chat.prompt_ids(history(call())["messages"][:3]))


def test_calls_that_the_template_leaves_out_are_not_trained_as_silence() -> None:
    for name in ("smollm3", "gemma"):
        assert reason(row(call()), name) == "template_rewrites"


def test_text_beside_a_call_that_the_template_leaves_out_is_not_trained_without() -> None:
    assert "Let me see.\n<tool_call>" in texts(KINDS["qwen2_5"], row(call(), content="Let me see."))[1]
    for name in ("llama3_1", "hermes"):
        assert reason(row(call(), content="Let me see."), name) == "template_rewrites"


def test_a_cut_call_is_not_closed_for_the_target() -> None:
    assert reason(row(call(), finish_reasons=["length"])) == "cut_in_call"


@pytest.mark.parametrize(
    "arguments", ['{"n": 1e5}', '{"n": 1.50}', '{"a": "x", "a": "y"}'], ids=["exponent", "zeros", "twice"]
)
def test_what_decoding_would_change_is_refused(arguments: str) -> None:
    """Decoded and written again these are 100000.0, 1.5 and one key: not what the target said."""
    assert reason(row(call(arguments))) == "template_rewrites"
    assert arguments in texts(KINDS["deepseek_v3"], row(call(arguments)))[1]


def test_shown_reads_names_keys_texts_and_numbers() -> None:
    calls = [call('{"city": "Zürich", "days": 3, "deep": [{"x": "a\\"b"}], "flag": true}')]
    assert shown(calls, 'weather {"city": "Z\\u00fcrich", "days": 3, "deep": [{"x": "a\\"b"}], "flag": true}')
    assert shown(calls, 'weather city=Zürich days=3 deep=x:a"b flag=True')
    assert not shown(calls, 'weather city=Zürich days=4 deep=x:a"b flag=True')
    assert not shown(calls, 'wind city=Zürich days=3 deep=x:a"b flag=True')

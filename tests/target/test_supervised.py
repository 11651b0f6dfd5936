"""Whatever a conversation holds and however a template writes it: what is supervised stands in the answer as given."""

import json
from functools import cache
from itertools import takewhile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.chat.template import ChatTemplate, Sample
from deepspec.errors import RowError
from tests.given.targets.tiny import answered
from tests.target.kinds import KINDS, Kind

REASONS = {
    "template_refuses",
    "template_rewrites",
    "bad_tools",
    "cut_in_call",
    "cut_in_reasoning",
    "only_reasoning",
    "nothing_supervised",
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
WORDS = ["a", "Bern", "★", "é", " ", "\n", "\n\n", "{", '"', "1e5", "\u2028", "Answer:"]
MARKS = ["<think>", "</think>", "<think>\n", "\n</think>\n\n", "<|im_end|>", "</s>", "<|channel|>analysis<|message|>"]


@cache
def chat(name: str) -> ChatTemplate:
    return KINDS[name].chat()


@cache
def tokenizer(name: str) -> Any:
    return KINDS[name].tokenizer()


def text(words: list[str], most: int = 6) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), max_size=most).map("".join)


VALUES = st.recursive(
    st.one_of(text(WORDS, 3), st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(text(WORDS, 2), inner, max_size=2)),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "days", "n"]), VALUES, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A kind of template, and a row of answers: reasoning in it or apart, calls, cuts and ids, in any mixture."""
    kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    messages: list[dict[str, Any]] = []
    if kind.system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text(WORDS))})
    generated, reasons, reasoning, ids = [], [], {}, []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(text(WORDS + MARKS)) + "?"})
        generated.append(len(messages))
        said = draw(text(WORDS) | text(WORDS + MARKS))
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if draw(st.integers(0, 3)) == 0:
            reasoning[str(len(messages))] = draw(text(WORDS))
        if draw(st.integers(0, 3)) == 0:
            message["tool_calls"] = [_call(draw(ARGUMENTS)) for _ in range(draw(st.integers(1, 2)))]
        reasons.append(draw(st.sampled_from(["stop", "stop", "length"])))
        ids.append(tokenizer(kind.name).encode(draw(st.sampled_from([said, f"<think>{said}", "else"]))))
        messages.append(message)
        if "tool_calls" in message and draw(st.booleans()):
            messages.append(
                {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": draw(text(WORDS))}
            )
            generated.append(len(messages))
            messages.append({"role": "assistant", "content": draw(text(WORDS)) + "!"})
            reasons.append("stop")
            ids.append(tokenizer(kind.name).encode(messages[-1]["content"]))
    row = answered("r", messages=messages, generated=generated, finish_reasons=reasons, thinking=draw(st.booleans()))
    more: dict[str, Any] = {"tools": TOOLS} if draw(st.booleans()) else {}
    more |= {"reasoning": reasoning} if reasoning else {}
    more |= {"token_ids": ids} if draw(st.integers(0, 3)) == 0 else {}
    return kind.name, {**row, **more}


def _call(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": json.dumps(arguments)}}


def kept(name: str, row: dict[str, Any]) -> tuple[Sample, ...]:
    """Return the samples of a row; none of one that is refused by a word of the list."""
    refused = ""
    try:
        return chat(name).render(row).samples
    except RowError as error:
        refused = error.reason
    assert refused in REASONS
    return ()


def runs(sample: Sample) -> list[tuple[int, int]]:
    """Return begin and end of each stretch of supervised tokens."""
    mask = [False, *sample.loss_mask, False]
    edges = [n for n in range(len(mask) - 1) if mask[n] != mask[n + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def turn_of(kind: Kind, row: dict[str, Any], context: list[int]) -> int:
    """Return the turn that was generated in exactly this context."""
    told = {"thinking": row["thinking"], "tools": row.get("tools")}
    prompts = [chat(kind.name).prompt_ids(row["messages"][:index], **told) for index in row["generated"]]
    assert context in prompts
    return prompts.index(context)


def check_turn(kind: Kind, row: dict[str, Any], turn: int, supervised: list[int]) -> None:
    """Check that supervised tokens are the answer of a turn as the row gives it, and its stop token."""
    stops = stop_ids(kind)
    cut = row["finish_reasons"][turn] == "length"
    ids = (row.get("token_ids") or [None] * 99)[turn]
    ended = [*takewhile(lambda token: token not in stops, ids or ())]  # where an engine tells more than its answer
    if ids is not None and supervised in [[*told, *end] for told in (ids, ended) for end in ((), supervised[-1:])]:
        assert cut or supervised[-1] in stops
        return
    assert (supervised[-1] in stops) is not cut
    assert not any(token in stops for token in supervised[:-1])
    said = tokenizer(kind.name).decode(supervised[:-1] if not cut else supervised)
    message = row["messages"][row["generated"][turn]]
    reasoning = row.get("reasoning", {}).get(str(row["generated"][turn]))
    content = before_stop(kind, message["content"])
    if "tool_calls" in message:
        assert content.strip() in said
        assert (reasoning or "").strip() in said
        for call in message["tool_calls"]:
            assert shows(kind, call["function"], said)
    elif reasoning is not None:
        assert bare(kind, said).endswith(content.strip())
        assert reasoning.strip() in said.removesuffix(content.strip())
    else:
        put_back = content.removeprefix("<think>\n") if kind.opens_reasoning else content
        assert content.strip() in (bare(kind, said), said.strip()) or put_back == said
        assert not (cut and kind.footer and said.endswith(kind.footer))


def stop_ids(kind: Kind) -> set[int]:
    return set(tokenizer(kind.name).convert_tokens_to_ids([kind.stop, *kind.stops]))


def before_stop(kind: Kind, content: str) -> str:
    for stop in (kind.stop, *kind.stops):
        content = content.partition(stop)[0]
    return content


def bare(kind: Kind, said: str) -> str:
    """Return what was said without the signs that a target of this kind puts around it."""
    return said.strip().removeprefix(kind.header).removesuffix(kind.footer).strip()


def shows(kind: Kind, function: dict[str, Any], said: str) -> bool:
    """Return whether a call stands in a text in the form that a template of this kind gives it."""
    arguments = json.loads(function["arguments"])
    if kind.name.startswith("deepseek"):
        return function["arguments"] in said
    if kind.name == "glm4_5":
        return all(
            f"<arg_key>{key}</arg_key>\n<arg_value>{as_json(value)}</arg_value>" in said
            for key, value in arguments.items()
        )
    if kind.name != "qwen3_coder":
        return json.dumps(arguments, ensure_ascii=False) in said
    return all(f"<parameter={key}>\n{written(value)}\n</parameter>" in said for key, value in arguments.items())


def as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


@settings(max_examples=200, deadline=None)
@given(conversations())
def test_every_supervised_token_stands_in_the_answer_as_given(drawn: tuple[str, dict[str, Any]]) -> None:
    name, row = drawn
    kind = KINDS[name]
    samples = kept(name, row)
    found = []
    for sample in samples:
        for begin, end in runs(sample):
            found.append(turn_of(kind, row, sample.input_ids[:begin]))
            check_turn(kind, row, found[-1], sample.input_ids[begin:end])
    assert found == sorted(set(found))
    for turn in (
        set(range(len(row["generated"]))) - set(found) if samples else ()
    ):  # an answer that was cut before its first word
        assert row["finish_reasons"][turn] == "length"


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(name for name in KINDS if not KINDS[name].opens_reasoning)), st.data())
def test_plain_conversations_of_every_kind_are_all_kept(name: str, data: st.DataObject) -> None:
    turns = data.draw(
        st.lists(text(WORDS).map(lambda said: f"{said}."), min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0)
    )
    cut = data.draw(st.sampled_from(["stop", "length"]))
    row = answered("r", *turns)
    rendered = chat(name).render({**row, "finish_reasons": [*row["finish_reasons"][:-1], cut]})
    supervised = [sample.input_ids[begin:end] for sample in rendered.samples for begin, end in runs(sample)]
    assert len(supervised) == len(turns) // 2
    for turn, ids in enumerate(supervised):
        check_turn(KINDS[name], {**row, "finish_reasons": [*row["finish_reasons"][:-1], cut]}, turn, ids)

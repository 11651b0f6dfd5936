"""Real templates, where a package that carries them is installed (`pip install --no-deps trl`), or in a folder.

DEEPSPEC_TEMPLATES=<folder of NAME.jinja files>. A template that has a twin NAME_training.jinja with `generation`
markers tells itself what was generated: that is held against our mask.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from deepspec.chat.content_parts import in_parts
from deepspec.chat.template import ChatTemplate, Rendered, Sample
from deepspec.errors import RowError
from tests.given.targets import tiny
from tests.given.targets.tiny import answered
from tests.target.test_kinds import CALL, called
from tests.target.test_supervised import REASONS, runs

TRAINING = "_training"
STOPS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "diffusion_gemma": ["<turn|>", "<|tool_response>"],
    "gemma4": ["<turn|>", "<|tool_response>"],
    "gemma": ["<end_of_turn>"],
    "glm4moe": ["<|user|>", "<|observation|>", "<|endoftext|>"],
    "gptoss": ["<|return|>", "<|call|>"],
    "idefics3": ["<end_of_utterance>"],
    "smolvlm": ["<end_of_utterance>"],
    "llama3": ["<|eot_id|>", "<|eom_id|>"],
    "llava": ["</s>"],
    "muse": ["<|eot|>", "<|eom|>"],
    "phi3": ["<|end|>", "<|endoftext|>"],
}
"""Beginning of a template's name -> tokens that end an answer; others end it as ChatML does."""

PARTS = ("idefics", "llava", "smolvlm")
"""Those whose contents are lists of parts."""

PLAIN = answered("r", "2+2?", "4", "Why?", "Sum.")
ROWS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "system": {
        **PLAIN,
        "messages": [{"role": "system", "content": "Be terse."}, *PLAIN["messages"]],
        "generated": [2, 4],
    },
    "cut": answered("r", "2+2?", "4 of", finish_reasons=["length"]),
    "inline": answered("r", "2+2?", "<think>\nTwo.\n</think>\n\n4", thinking=True),
    "apart": answered("r", "2+2?", "4", thinking=True, reasoning={"1": "Two."}),
    "thinks": answered("r", "2+2?", "4", thinking=True),
    "calls": called(),
    "text and call": called("Let me see."),
    "two calls": called(),
}
ROWS["two calls"]["messages"][1]["tool_calls"] = [CALL, CALL]
_SIGN = re.compile(
    r"<\|[^|<>\s']+\|>|<｜[^｜]+｜>|</?s>|<bos>|<(?:start|end)_of_\w+>|<\|?(?:turn|channel|tool_response)\|?>|"
    r"\[/?[A-Z_]+\]|\[gMASK\]|<sop>"
)


def folder() -> Path | None:
    named = os.environ.get("DEEPSPEC_TEMPLATES")
    if named:
        return Path(named)
    found = find_spec("trl")
    return None if found is None or found.origin is None else Path(found.origin).parent / "chat_templates"


def found() -> list[Path]:
    here = folder()
    return [] if here is None else sorted(here.glob("*.jinja"))


FOUND = {path.stem: path for path in found()}
PLAINLY = [name for name in FOUND if not name.endswith(TRAINING)]
needs_templates = pytest.mark.skipif(not FOUND, reason="no real templates: install trl, or set DEEPSPEC_TEMPLATES")


def stops_of(name: str) -> list[str]:
    return next((stops for start, stops in STOPS.items() if name.startswith(start)), ["<|im_end|>"])


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes that knows the signs which the template writes."""
    text = FOUND[name].read_text(encoding="utf-8")
    fast = tiny.tokenizer(text)
    fast.add_tokens(["<think>", "</think>"])
    fast.add_special_tokens({"additional_special_tokens": sorted({*_SIGN.findall(text), *stops_of(name)})})
    fast.eos_token, fast.bos_token = stops_of(name)[0], "<bos>" if "gemma" in name else "<s>"
    return fast


@cache
def chat(name: str) -> ChatTemplate:
    fast = tokenizer(name)
    return ChatTemplate(fast, frozenset(fast.convert_tokens_to_ids(stops_of(name))), name, vocab_size=len(fast))


def rendered(name: str, row: dict[str, Any]) -> Rendered | str:
    """Return a row's samples, or the reason for which it is refused."""
    try:
        return chat(name).render(row)
    except RowError as error:
        told, reason = str(error), error.reason
    assert told.startswith("sample r: " if len(row["generated"]) == 1 else "sample r: turn ")
    return reason


def said(name: str, sample: Sample) -> Iterator[list[int]]:
    for begin, end in runs(sample):
        yield sample.input_ids[begin:end]


@needs_templates
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", PLAINLY)
def test_what_is_supervised_is_the_answer_in_the_context_that_it_had_or_the_row_is_refused(name: str, row: str) -> None:
    given = ROWS[row]
    found = rendered(name, given)
    if isinstance(found, str):
        assert found in REASONS
        return
    told = {"thinking": given["thinking"], "tools": given.get("tools")}
    prompts = [chat(name).prompt_ids(given["messages"][:index], **told) for index in given["generated"]]
    stops = set(tokenizer(name).convert_tokens_to_ids(stops_of(name)))
    turns = []
    for sample in found.samples:
        for begin, end in runs(sample):
            turn = prompts.index(sample.input_ids[:begin])
            turns.append(turn)
            ids, message = sample.input_ids[begin:end], given["messages"][given["generated"][turn]]
            cut = given["finish_reasons"][turn] == "length"
            assert (ids[-1] in stops) is not cut
            assert not stops & set(ids[:-1])
            words = tokenizer(name).decode(ids)
            assert (message["content"].removeprefix("<think>\n")).strip() in words
            assert given.get("reasoning", {}).get(str(given["generated"][turn]), "") in words
            for call in message.get("tool_calls", []):
                assert call["function"]["name"] in words
                assert "Bern" in words
    assert turns == list(range(len(prompts)))


@needs_templates
@pytest.mark.parametrize("name", [name for name in PLAINLY if "deepseek" not in name])
def test_plain_conversations_are_kept(name: str) -> None:
    found = rendered(name, ROWS["plain"])
    assert not isinstance(found, str), found


@needs_templates
@pytest.mark.parametrize("name", [name for name in FOUND if name.endswith(TRAINING)])
def test_what_a_template_marks_as_generated_is_what_is_supervised(name: str) -> None:
    """Its marks may take in what the prompt already holds, or leave the stop token out: never the other way round."""
    row = answered("r", "2+2?", "4")
    found = rendered(name, row)
    if isinstance(found, str):
        pytest.skip(f"refused: {found}")
    (sample,) = found.samples
    fast = tokenizer(name)
    messages = [in_parts(each) if name.startswith(PARTS) else each for each in row["messages"]]
    marked = fast.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, enable_thinking=False
    )
    count = min(len(sample.input_ids), len(marked["input_ids"]))
    assert chat(name).clock or marked["input_ids"][:count] == sample.input_ids[:count]
    ((begin, end),) = runs(sample)
    inside = [bool(on) for on in marked["assistant_masks"][begin : end - 1]]
    assert all(inside), fast.decode(sample.input_ids)

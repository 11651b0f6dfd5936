"""The loss-mask rule of the public checkpoints, replayed here only: the product has its own (see test_template).

There a default system prompt is put in, and everything from the generation prompt to the newline after the end token
is supervised, the empty think block included.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from deepspec.chat.template import ChatTemplate
from tests.given.targets.tiny import answered

GOLDEN = os.environ.get("DEEPSPEC_GOLDEN", "")
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
ANSWER = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>\n)", re.DOTALL)

pytestmark = pytest.mark.skipif(
    not (Path(GOLDEN) / "data" / "expected.json").is_file() or not GOLDEN,
    reason="set DEEPSPEC_GOLDEN to a folder of golden numbers",
)


def golden() -> tuple[Any, list[list[dict[str, str]]], dict[str, Any]]:
    folder = Path(GOLDEN)
    lines = (folder / "data" / "conversations.jsonl").read_text().split("\n")
    conversations = [json.loads(line)["conversations"] for line in lines if line]
    tokenizer = AutoTokenizer.from_pretrained(min((folder / "targets").iterdir()))  # all have the same
    return tokenizer, conversations, json.loads((folder / "data" / "expected.json").read_text())


def replayed(tokenizer: Any, messages: list[dict[str, str]], max_length: int) -> tuple[list[int], list[int]]:
    """Return token ids and mask by the public rule."""
    if messages[0]["role"] != "system":
        messages = [SYSTEM, *messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    spans = [match.span(1) for match in ANSWER.finditer(text)]
    mask = [int(any(start <= at < end for start, end in spans)) for at, _ in encoded["offset_mapping"]]
    return encoded["input_ids"][:max_length], mask[:max_length]


def test_the_public_rule_is_understood() -> None:
    tokenizer, conversations, expected = golden()
    for messages, record in zip(conversations, expected["records"], strict=True):
        assert replayed(tokenizer, messages, expected["max_length"]) == (record["input_ids"], record["loss_mask"])


def test_the_products_rule_supervises_less_and_adds_no_system_prompt() -> None:
    tokenizer, conversations, _ = golden()
    template = ChatTemplate(tokenizer, frozenset({258, 256}), "golden")
    for messages in conversations:
        generated = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        row = answered("x", generated=generated, finish_reasons=["stop"] * len(generated), messages=messages)
        found = template.render(row).samples
        assert len(found) == len(generated)  # the template strips think blocks from history
        for sample, turn in zip(found, generated, strict=True):
            supervised = [token for token, is_on in zip(sample.input_ids, sample.loss_mask, strict=True) if is_on]
            assert tokenizer.decode(supervised) == messages[turn]["content"] + "<|im_end|>"
            assert SYSTEM["content"] not in tokenizer.decode(sample.input_ids)

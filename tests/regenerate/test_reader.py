"""What the target's tokenizer says about prompts and answers."""

from datetime import date
from typing import Any, NoReturn

import pytest

from deepspec.asking.reader import TargetReader
from deepspec.chat.clock import Clock
from deepspec.messages.conversations import AnswerRow, Message
from deepspec.placement import Placement
from tests.given.engines.prompts import TARGET
from tests.given.targets import tiny
from tests.regenerate.test_parts import answer

DAY = date(2025, 12, 24)
HELLO: list[Message] = [{"role": "user", "content": "hello"}]
DATED = "{{ strftime_now('%Y-%m-%d') }}" + tiny.CHATML


class Words:
    """A tokenizer with one token per word, and one for each message's role."""

    chat_template = "words"

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        return text.split()

    def get_chat_template(self, chat_template: object, tools: object) -> str:
        return self.chat_template

    def apply_chat_template(self, messages: list[Message], **options: object) -> list[str]:
        return [word for message in messages for word in [message["role"], *message["content"].split()]]


def row(content: str, tokens: int, **more: Any) -> AnswerRow:
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
    return answer("a", messages=said, usage={"prompt_tokens": 2, "completion_tokens": tokens}, **more)


def test_a_target_elsewhere_tells_nothing() -> None:
    reader = TargetReader.of(TARGET, Placement(), DAY)
    assert reader.prompt_ids(HELLO) is None
    assert (reader.clock, reader.day) == (None, None)
    assert reader.drift(row("one two", 4)) == {"date_unknown"}


def test_a_prompt_is_read_as_the_template_renders_it() -> None:
    read: Any = TargetReader(Words()).prompt_ids([{"role": "user", "content": "two words"}])
    assert read == ["user", "two", "words"]


def test_a_template_that_prints_the_clock_prints_the_date_of_the_run() -> None:
    reader = TargetReader(tiny.tokenizer(DATED), day=DAY)
    assert tiny.tokenizer().decode(reader.prompt_ids(HELLO)).startswith("2025-12-24<|im_start|>user")
    assert (reader.clock, reader.day) == (Clock(variable=None), DAY)
    assert TargetReader(tiny.tokenizer(), day=DAY).day is None


def test_a_row_without_the_date_that_its_prompt_printed_is_told() -> None:
    """As one that was adopted from a log."""
    reader = TargetReader(tiny.tokenizer(DATED), day=DAY)
    assert reader.drift({**row("x", 2), "date": "2025-12-24"}) == frozenset()
    assert reader.drift(row("x", 2)) == {"date_unknown"}


@pytest.mark.parametrize("error", [TypeError("odd"), ValueError("odd"), KeyError("odd")])
def test_a_text_that_the_tokenizer_cannot_read_is_drift_and_no_end(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*told: object, **more: object) -> NoReturn:
        raise error

    reader = TargetReader(Words())
    monkeypatch.setattr(Words, "encode", fail)
    assert reader.drift(row("one two", 3)) == {"drifted"}


def test_drift_is_another_number_of_tokens_than_the_engine_counted() -> None:
    reader = TargetReader(Words())
    assert reader.drift(row("one two", 3)) == frozenset()  # two words and the stop token
    assert reader.drift(row("one two", 4)) == {"drifted"}
    assert reader.drift(row("one two", 2, finish_reasons=["length"])) == frozenset()  # cut: no stop token


def test_drift_of_more_than_plain_text_cannot_be_told() -> None:
    assert TargetReader(Words()).drift(row("one two", 9, reasoning={"1": "hm"})) == frozenset()
    assert TargetReader(Words()).drift(row("one two", 9, token_ids=[[1] * 9])) == frozenset()

"""A tokenizer and its chat template at work: messages become text, and text becomes token ids, as in an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from deepspec.chat.answered import ChatMessage
from deepspec.chat.clock import CODES, DATE, READS_CLOCK, Clock, clock_of, codes, frozen
from deepspec.chat.content_parts import in_parts, reads_parts
from deepspec.chat.faithful import Signs
from deepspec.chat.tool_calls import reads_text, with_arguments


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateTold:
    """What a template is told beside the messages."""

    switches: Mapping[str, Any]
    """Variables, `enable_thinking` among them."""
    tools: Sequence[ChatMessage] | None = None
    """Tool descriptions."""
    day: date = DATE
    """The date on which its clock stands still, at noon."""


class Renderer:
    """Renders and tokenises with one target's tokenizer.

    Args:
        tokenizer: a transformers tokenizer that has a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Keep the tokenizer."""
        self._tokenizer = tokenizer
        self._reads_text: dict[str, bool] = {}
        self._reads_parts: dict[str, bool] = {}

    def text(self, messages: Sequence[ChatMessage], told: TemplateTold, *, answer_next: bool) -> str:
        """Return what the template makes of messages.

        Args:
            messages: the turns so far; arguments of tool calls may be JSON text or objects.
            told: beside them.
            answer_next: whether the generation prompt follows.

        Raises:
            RowError: arguments of a tool call are no JSON object (`bad_tools`).
            Exception: whatever the template raises: nobody can tell what it does with a row.
        """
        text: str = self._applied(*self._prepared(messages, told), told, answer_next=answer_next)
        return text

    def prompt_ids(self, messages: Sequence[ChatMessage], told: TemplateTold) -> list[int]:
        """Return the token ids of messages with the generation prompt; arguments and errors are those of `text`."""
        ids: list[int] = self._applied(*self._prepared(messages, told), told, answer_next=True, tokenize=True)
        return ids

    def ids(self, text: str) -> list[int]:
        """Return the token ids of rendered text: nothing is put before or behind it."""
        plain = {"add_special_tokens": False, "padding": False, "truncation": False, "return_attention_mask": False}
        ids: list[int] = self._tokenizer(text, **plain)["input_ids"]
        return ids

    def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def source(self) -> str:
        """Return the text of the templates, of all that there are for chats with and without tools."""
        return "".join({self._template(None), self._template([{}])})

    @cached_property
    def clock(self) -> Clock | None:
        """Return how the template reads the clock; None where it does not."""

        def render(
            messages: Sequence[ChatMessage],
            tools: Sequence[ChatMessage] | None,
            variables: Mapping[str, Any],
            day: date,
        ) -> str:
            told = TemplateTold(switches={**variables, "enable_thinking": False}, tools=tools, day=day)
            return self.text(messages, told, answer_next=True)

        return clock_of(self.source, render)

    @cached_property
    def last_id(self) -> int:
        """Return the largest token id that the tokenizer knows."""
        last: int = max(self._tokenizer.get_vocab().values())
        return last

    def signs(self, stop_ids: frozenset[int]) -> Signs:
        """Return the special tokens as text, those that end an answer among them."""
        added = self._tokenizer.added_tokens_decoder
        stops = {added[token].content for token in stop_ids if token in added}
        return Signs(stops=stops, all={token.content for token in added.values() if token.special} | stops)

    def _wants_text(self, template: str) -> bool:
        if template not in self._reads_text:
            told = {"enable_thinking": False}

            def render(messages: Sequence[ChatMessage], tools: Sequence[ChatMessage] | None) -> str:
                given = self._contents(template, messages)
                text: str = self._applied(template, given, TemplateTold(switches=told, tools=tools), answer_next=False)
                return text

            self._reads_text[template] = reads_text(render)
        return self._reads_text[template]

    def _prepared(self, messages: Sequence[ChatMessage], told: TemplateTold) -> tuple[str, Sequence[ChatMessage]]:
        """Return the template for messages, and these with contents and arguments in the form that it reads."""
        template = self._template(told.tools)
        given = self._contents(template, messages)
        if not any(message.get("tool_calls") for message in messages):
            return template, given
        as_text = self._wants_text(template)
        return template, [with_arguments(message, as_text=as_text) for message in given]

    def _contents(self, template: str, messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
        if template not in self._reads_parts:

            def render(probe: Sequence[ChatMessage]) -> str:
                text: str = self._applied(
                    template, probe, TemplateTold(switches={"enable_thinking": False}), answer_next=False
                )
                return text

            self._reads_parts[template] = reads_parts(render)
        return [in_parts(message) for message in messages] if self._reads_parts[template] else messages

    def _applied(
        self,
        template: str,
        messages: Sequence[ChatMessage],
        told: TemplateTold,
        *,
        answer_next: bool,
        tokenize: bool = False,
    ) -> Any:
        switches = dict(told.switches)
        if READS_CLOCK in template:
            template, switches[CODES] = frozen(template), codes(told.day)
        return self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=None if told.tools is None else [dict(tool) for tool in told.tools],
            chat_template=template,
            tokenize=tokenize,
            return_dict=False,
            **{**switches, "add_generation_prompt": answer_next},
        )

    def _template(self, tools: Sequence[ChatMessage] | None) -> str:
        """Return the template's text: of several, the one that transformers takes with or without tools."""
        text: str = self._tokenizer.get_chat_template(None, None if tools is None else list(tools))
        return text

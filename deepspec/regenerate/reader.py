"""How the target's own tokenizer reads what engines are asked and what they answer."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast  # the one tokenizer class that comes without torch

from deepspec.artifacts import TargetId
from deepspec.errors import TargetError
from deepspec.formats.conversations import AnswerRow, Message
from deepspec.placement import Placement
from deepspec.target.template import ChatTemplate


class TargetReader:
    """The target's tokenizer and chat template, or nothing where the target is not on this machine.

    Args:
        tokenizer: a transformers tokenizer, or None.
        name: the target, for messages.
    """

    def __init__(self, tokenizer: Any | None, name: str = "target") -> None:
        """Refuse a target without a chat template."""
        self._tokenizer = tokenizer
        self._template = None if tokenizer is None else ChatTemplate(tokenizer, frozenset(), name)

    @classmethod
    def of(cls, target: TargetId, placement: Placement) -> "TargetReader":
        """Return the reader of a target that lies where the placement says.

        Raises:
            TargetError: it lies there, but without a tokenizer that can be read, or without a chat template.
        """
        if target.digest not in placement.locations:
            return cls(None)
        folder = placement.locations[target.digest]
        try:
            return cls(PreTrainedTokenizerFast.from_pretrained(folder), folder)
        except (OSError, ValueError) as error:
            raise TargetError(f"target {folder}: its tokenizer cannot be read: {error}; check the folder") from error

    def prompt_tokens(self, messages: Sequence[Message], **told: Any) -> int | None:
        """Return how many tokens a prompt has as the target is given it; None where there is no tokenizer.

        Args:
            messages: the turns so far.
            told: what the chat template is told besides, as `ChatTemplate.prompt_ids` has it.
        """
        return None if self._template is None else len(self._template.prompt_ids(messages, **told))

    def drift(self, row: AnswerRow) -> frozenset[str]:
        """Return in what a row's number of tokens differs from what the engine counted: nothing, or some of

        - `prompt_drifted`: its prompts, as the target's template renders them: the engine's renders them otherwise;
        - `drifted`: its answers, re-tokenised; told of plain text without token ids only.
        """
        if self._template is None or "usage" not in row:
            return frozenset()
        told = {"prompt_drifted": self._prompt_drifted(row), "drifted": self._answers_drifted(row)}
        return frozenset(name for name, differs in told.items() if differs)

    def _prompt_drifted(self, row: AnswerRow) -> bool:
        counted = row["usage"]["prompt_tokens"]
        if not counted:  # the engine does not count
            return False
        prompts = [row["messages"][:index] for index in row["generated"]]
        told = {"tools": row.get("tools") or None, "switches": row.get("chat_template_kwargs")}
        try:
            tokens = [self.prompt_tokens(prompt, thinking=row["thinking"], **told) for prompt in prompts]
        except TemplateError:  # the target's template refuses what the engine's took
            return True
        return bool(sum(number or 0 for number in tokens) != counted)

    def _answers_drifted(self, row: AnswerRow) -> bool:
        messages = [row["messages"][index] for index in row["generated"]]
        plain = "reasoning" not in row and not any("tool_calls" in message for message in messages)
        if self._tokenizer is None or not plain or "token_ids" in row:
            return False
        texts = [message["content"] for message in messages]
        tokens = sum(len(self._tokenizer.encode(text, add_special_tokens=False)) for text in texts)
        stops = sum(reason != "length" for reason in row["finish_reasons"])
        return bool(tokens + stops != row["usage"]["completion_tokens"])

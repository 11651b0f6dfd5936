"""How the target's own tokenizer reads what engines are asked and what they answer."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerFast  # the one tokenizer class that comes without torch

from deepspec.chat.clock import DATE, Clock
from deepspec.chat.template import ChatTemplate
from deepspec.errors import RowError, TargetError
from deepspec.lines.bad_rows import one_row
from deepspec.messages.conversations import AnswerRow, Message
from deepspec.messages.finish import LENGTH
from deepspec.placement import Placement
from deepspec.specs import TargetId


class TargetReader:
    """The target's tokenizer and chat template, or nothing where the target is not on this machine.

    Args:
        tokenizer: a transformers tokenizer, or None.
        name: the target, for messages.
        day: the date that a template which prints one is given.
    """

    def __init__(self, tokenizer: Any | None, name: str = "target", day: date = DATE) -> None:
        """Refuse a target without a chat template."""
        self._tokenizer = tokenizer
        self._template = None if tokenizer is None else ChatTemplate(tokenizer, frozenset(), name)
        self._day = day

    @classmethod
    def of(cls, target: TargetId, placement: Placement, day: date) -> "TargetReader":
        """Return the reader of a target that lies where the placement says.

        Raises:
            TargetError: it lies there, but without a tokenizer that can be read, or without a chat template.
        """
        if target.digest not in placement.locations:
            return cls(None, day=day)
        folder = placement.locations[target.digest]
        try:
            return cls(PreTrainedTokenizerFast.from_pretrained(folder), folder, day)
        except (OSError, ValueError) as error:
            raise TargetError(f"target {folder}: its tokenizer cannot be read: {error}; check the folder") from error

    @property
    def clock(self) -> Clock | None:
        """Return how the template reads the clock; None where it does not, or is not on this machine."""
        return None if self._template is None else self._template.clock

    @property
    def day(self) -> date | None:
        """Return the date that prompts print; None where they print none, or nobody here can tell."""
        return None if self.clock is None else self._day

    def prompt_ids(self, messages: Sequence[Message], **told: Any) -> list[int] | None:
        """Return a prompt's token ids as the target is given it; None where there is no tokenizer.

        Args:
            messages: the turns so far.
            told: what the chat template is told besides, as `ChatTemplate.prompt_ids` has it, but for the date.
        """
        return None if self._template is None else self._template.prompt_ids(messages, day=self._day, **told)

    def drift(self, row: AnswerRow) -> frozenset[str]:
        """Return what is not as it should be about an answered row: nothing, or some of

        - `drifted`: its answers, re-tokenised, have another number of tokens than the engine counted; told of plain
          text without token ids only;
        - `date_unknown`: with which date its prompts were rendered, where they may print one.
        """
        if self._template is None:
            return frozenset({"date_unknown"})
        told = {"drifted": self._drifted(row), "date_unknown": self.clock is not None and "date" not in row}
        return frozenset(name for name, is_so in told.items() if is_so)

    def _drifted(self, row: AnswerRow) -> bool:
        messages = [row["messages"][index] for index in row["generated"]]
        plain = "reasoning" not in row and not any("tool_calls" in message for message in messages)
        if not plain or "usage" not in row or "token_ids" in row:
            return False
        try:
            with one_row("drifted"):
                tokens = sum(len(self._encoded(message["content"])) for message in messages)
        except RowError:  # a text that the tokenizer cannot read
            return True
        stops = sum(reason != LENGTH for reason in row["finish_reasons"])
        return bool(tokens + stops != row["usage"]["completion_tokens"])

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = [] if self._tokenizer is None else self._tokenizer.encode(text, add_special_tokens=False)
        return ids

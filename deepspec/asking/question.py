"""What an engine is asked, what it answers, and what it means that it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepspec.messages.conversations import Message


class SkipRow(Exception):  # noqa: N818 - not an error: it becomes the row's reason
    """The sample cannot be regenerated; stays inside this room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One turn that the target should answer."""

    messages: list[Message]
    """The conversation so far."""
    tools: list[dict[str, Any]]
    seed: int
    thinking: bool
    prompt_ids: Sequence[int] | None = None
    """The conversation as the target's own template renders it; None where the target is not on this machine."""
    needs_calls: bool = False
    """Whether the sample goes on with what the tools said that the answer calls."""
    row: str | None = None
    """Id of the row whose last turn it is, where states that come with the answer are kept; else None."""

    def read_with(self, answer: "Answer") -> list[int] | None:
        """Return what the target read to give an answer: the prompt and the answer without its last token.

        None where either is not known as token ids.
        """
        if self.prompt_ids is None or not answer.token_ids:
            return None
        return [*self.prompt_ids, *answer.token_ids[:-1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the target said in one turn."""

    content: str
    finish_reason: str
    """One of `formats.finish.Finish`, whatever the engine calls it."""
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] | None = None
    """Generated tokens; None where the engine does not give them, or fewer than it counted (llama.cpp reports one id
    for a character of several tokens)."""
    prompt_tokens: int = 0
    """0 where the engine does not count."""
    completion_tokens: int = 0
    endpoint: str = ""

    @property
    def tokens(self) -> int:
        """Return how many tokens the engine made for it."""
        return self.completion_tokens


Response = Mapping[str, Any]
"""What an engine sends, decoded."""

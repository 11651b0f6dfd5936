"""What an engine is asked, what it answers, and what it means that it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deepspec.errors import DeepSpecError
from deepspec.formats.conversations import Message

Fault = Literal["row", "odd", "engine", "busy", "late"]
"""What a failure says: this request cannot be answered; what came back is no answer (the endpoint is sick, or it gives
no other one to this request); the endpoint is sick; it has too much to do (and said so); or it did not answer in time
(either of the two)."""

LONGEST_REASON = 300
"""Characters that are kept of what an engine says."""


class AskError(DeepSpecError):
    """A question without an answer. Stays inside this room: it becomes a retry or the `error` of a row.

    Args:
        message: why; too long ones are cut, and what no file can hold is replaced.
        fault: whose fault it is.
        reason: one word by which a row is counted that keeps failing so; empty where the next run may see it answered.
        retry_after: seconds that the endpoint asked to be left alone.
    """

    def __init__(self, message: str, fault: Fault, *, reason: str = "", retry_after: float | None = None) -> None:
        """Say why, and whose fault it is."""
        super().__init__(message[:LONGEST_REASON].encode(errors="replace").decode())
        self.fault = fault
        self.reason = reason
        self.retry_after = retry_after

    @property
    def can_pass(self) -> bool:
        """Return whether the same question may be answered later, or elsewhere."""
        return self.fault != "row"


class UnknownFinishError(AskError):
    """An answer that ended with a reason that is in no table: it may be a piece of one."""

    def __init__(self, told: Any) -> None:
        """Name the reason."""
        self.told = repr(told)[:40]
        super().__init__(f"the answer was ended by {self.told}", "engine")


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


Response = Mapping[str, Any]
"""What an engine sends, decoded."""

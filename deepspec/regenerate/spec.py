"""What changes the answers: the target, how it samples, and how rows are cut into parts."""

from datetime import date as Date  # noqa: N812 - a field is called date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from deepspec.artifacts import NOT_ADDRESSED, Spec, TargetId
from deepspec.chat.clock import DATE
from deepspec.lines.bad_rows import DEFAULT_SHARE, BadShare

Share = Annotated[float, Field(ge=0, le=1)]


class Sampling(Spec):
    """How the target samples, in the terms that vLLM and SGLang use.

    Everything is sent with every request, so that an engine's own defaults never apply; a field that is None is not
    sent, for an engine that refuses it.
    """

    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=0, ge=0)
    """Choose among the k likeliest tokens; 0 is no limit."""
    min_p: float | None = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(default=1.0, gt=0)
    """Divides the logits of tokens seen before; 1 is off. Not the same as `presence_penalty`."""
    presence_penalty: float | None = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens generated before; 0 is off."""
    max_tokens: int = Field(default=2048, gt=0)
    """Longest answer of one turn; longer ones are cut, kept, marked and counted."""
    thinking: Literal["off", "on"] | Share = "off"
    """Whether the target thinks before it answers, where its template knows a switch; a number is the share of rows
    that do."""
    chat_template_kwargs: dict[str, Any] | None = None
    """More switches of the target's chat template (`{"reasoning_effort": "low"}`, say), recorded in every row so that
    it is trained on as it was asked."""
    seed: int = 0
    """Every turn of every sample gets a seed of its own, derived from this one."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leave_thinking(cls, switches: dict[str, Any] | None) -> dict[str, Any] | None:
        if switches and "enable_thinking" in switches:
            raise ValueError("enable_thinking differs from row to row; set sampling.thinking instead")
        return switches or None

    def greedy(self) -> "Sampling":
        """Return how the target answers greedily, in all else as here: nothing moves the likeliest token.

        What is not sent is not sent then either.
        """
        off = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        off |= {"repetition_penalty": 1.0, "presence_penalty": 0.0}
        return self.but(**{name: value for name, value in off.items() if getattr(self, name) is not None})

    @property
    def thinking_share(self) -> float:
        """Return the share of rows answered in thinking mode."""
        return {"off": 0.0, "on": 1.0}[self.thinking] if isinstance(self.thinking, str) else self.thinking


class RegenerateOptions(Spec):
    """What a user sets of a regeneration."""

    sampling: Sampling = Sampling()
    """How the target samples."""
    rows_per_part: int = Field(default=2000, gt=0)
    """Prompts per part: what is committed together."""
    bad_share: BadShare = DEFAULT_SHARE
    """Share of the rows, from the twentieth on, that may be errors of their own (refused by the engine, not the prompt
    that the target read, …); beyond it the run ends with a table of why. What was answered is kept."""
    date: Date = DATE
    """The date that a chat template which prints one is given: the same for every row, whenever it is asked."""


class RegenerateSpec(RegenerateOptions):
    """Let the target answer prompts."""

    target: TargetId
    """Which target answers."""
    held_out: int | None = Field(default=None, gt=0)
    """So many prompts of the validation split alone are answered, at most, chosen by their ids; None: all prompts."""
    answers: str | None = None
    """Checksum (`xxh3:…`) of a file of answers that the target gave before: they are adopted, no engine is asked."""
    answers_bad_rows: Literal["stop", "drop"] = Field(default="drop", json_schema_extra=NOT_ADDRESSED)
    """What becomes of rows of that file that cannot be read: what `prepare.bad_rows` says, of the same rows."""
    answers_bad_share: BadShare = DEFAULT_SHARE
    """Share of its rows that may be such: `prepare.bad_share`."""

    @property
    def engine_tokens(self) -> int:
        """Return how many tokens an answer takes at most; 0 where answers are adopted."""
        return 0 if self.answers is not None else self.sampling.max_tokens

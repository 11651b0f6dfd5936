"""What changes the answers: the target, how it samples, and how rows are cut into parts."""

from datetime import date as Date  # noqa: N812 - a field is called date
from typing import Literal

from pydantic import Field

from deepspec.asking.sampling import Sampling
from deepspec.chat.clock import DATE
from deepspec.lines.bad_rows import DEFAULT_SHARE, BadShare
from deepspec.specs import NOT_ADDRESSED, Spec, TargetId
from deepspec.states.wanted import WhileAnswering


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
    while_answering: WhileAnswering | None = Field(default=None, json_schema_extra=NOT_ADDRESSED)
    """States that are asked for with the answers, which are the same then: what `cache.while_answering` says."""

    @property
    def engine_states(self) -> WhileAnswering | None:
        """Return which states come with the answers; None: none."""
        return self.while_answering

    @property
    def engine_tokens(self) -> int:
        """Return how many tokens an answer takes at most; 0 where answers are adopted."""
        return 0 if self.answers is not None else self.sampling.max_tokens

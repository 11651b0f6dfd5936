"""What decoding gives: tokens, and what happened round by round."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
ThresholdMode = Literal["cumulative", "per_slot"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How to decode."""

    max_new_tokens: int
    temperature: float = 0.0
    stop: bool = True
    """Whether stop tokens end a sample; timing goes on to the limit, so that all sides decode equally much."""
    seed: int = 0
    confidence_threshold: float = 0.0
    """The proposal is cut before the first slot whose confidence is below this; 0 cuts nothing."""
    threshold_mode: ThresholdMode = "cumulative"
    """Confidence of a slot: the product through it, or its own (as in the public evaluator)."""
    confidence_temperatures: tuple[float, ...] = ()
    """One per slot, dividing its confidence logit; none: 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One sequence to continue."""

    sample_id: str
    """Also seeds the sample's own random numbers."""
    ids: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One proposal and its verification."""

    room: int
    """Tokens that the limit still allowed."""
    proposed: int
    """Drafted tokens that were verified; through the stop token where one was accepted."""
    accepted: int
    """Of them, those that the target kept."""
    stopped: bool
    """Whether the last accepted one is a stop token: the target's own token is then beyond the end."""
    confidence: tuple[float, ...] = ()
    """Confidence logits of all slots, cut or not."""

    @property
    def counted_proposed(self) -> int:
        """Return the proposed tokens that the limit left a place for, besides the target's own token."""
        return min(self.proposed, self.room - 1)

    @property
    def counted_accepted(self) -> int:
        """Return the accepted tokens within the limit, besides the target's own token."""
        return min(self.accepted, self.room - 1)

    @property
    def tokens(self) -> int:
        """Return how many tokens the round added to the output."""
        return min(self.accepted + (not self.stopped), self.room)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """One finished sequence. Its first token comes from reading the prompt; all others from the rounds."""

    sample_id: str
    prompt_tokens: int
    tokens: tuple[int, ...]
    """Generated tokens, through the stop token where there is one."""
    finish_reason: FinishReason
    rounds: tuple[Round, ...]

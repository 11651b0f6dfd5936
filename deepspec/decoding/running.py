"""The rows that are being decoded, and what each of them has so far."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepspec.decoding.round import Told
from deepspec.kv.memory import Memory
from deepspec.proposers.propose import ProposerRows
from deepspec.proposers.sampling import Noise
from deepspec.rounds.decoded import Decoded, FinishReason, Prompt, Round


@dataclass(kw_only=True, slots=True)
class RunningSequence:
    """One sequence on its way."""

    prompt: Prompt
    limit: int
    """Most tokens to generate."""
    stop_ids: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def length(self) -> int:
        """Return the tokens of prompt and answer; the last of them is not read yet."""
        return len(self.prompt.ids) + len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add generated tokens, as far as the limit allows."""
        self.tokens += tokens[: self.limit - len(self.tokens)]
        if self.tokens[-1] in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"

    def record(self, told: Told) -> None:
        """Add one round."""
        accepted = told.accepted
        end = next((place for place, token in enumerate(accepted, 1) if token in self.stop_ids), 0)
        kept = Round(
            room=self.limit - len(self.tokens),
            proposed=end or told.proposed,
            accepted=end or len(accepted),
            stopped=end > 0,
            confidence=told.confidence,
        )
        self.rounds.append(kept)
        self.extend(accepted[:end] if end else [*accepted, told.own])

    def result(self) -> Decoded:
        """Return the finished sequence."""
        return Decoded(
            sample_id=self.prompt.sample_id,
            prompt_tokens=len(self.prompt.ids),
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason or "length",
            rounds=tuple(self.rounds),
        )


@dataclass(kw_only=True, slots=True)
class Running:
    """Rows that are decoded together."""

    rows: list[RunningSequence]
    cache: Memory
    """The target's."""
    draft: ProposerRows
    noise: Noise
    current: Tensor
    """`(B,)`: each row's last token, which the target has not read yet."""

    def ended(self) -> Iterator[int]:
        """Yield the rows that are finished."""
        return (place for place, row in enumerate(self.rows) if row.finish_reason is not None)

    def record(self, told: Sequence[Told], own: Tensor) -> None:
        """Add a round to every row.

        Args:
            told: of each row.
            own: `(B,)` the target's own tokens, which it has not read yet.
        """
        for row, each in zip(self.rows, told, strict=True):
            row.record(each)
        self.current = own

    def keep(self, places: Sequence[int]) -> None:
        """Drop all rows but these."""
        self.rows = [self.rows[place] for place in places]
        self.current = self.current[torch.tensor(places, dtype=torch.int64, device=self.current.device)]
        self.cache.keep(places)
        self.draft.keep(places)
        self.noise.keep(places)

    def replace(self, places: Sequence[int], fresh: "Running") -> None:
        """Put other rows in the place of these."""
        for place, row in zip(places, fresh.rows, strict=True):
            self.rows[place] = row
        self.current[list(places)] = fresh.current
        self.cache.replace(places, fresh.cache)
        self.draft.replace(places, fresh.draft)
        self.noise.replace(places, fresh.noise)

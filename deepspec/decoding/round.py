"""What one round does on the device: propose, verify, choose, commit.

Legend: B rows, K slots of a proposal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepspec.decoding.target_rows import TargetRows
from deepspec.kv.memory import Memory
from deepspec.proposers.confidence import trusted
from deepspec.proposers.propose import ProposerRows
from deepspec.proposers.sampling import Proposal, Verdict, verify
from deepspec.rounds.decoded import Settings


@dataclass(kw_only=True, slots=True)
class RoundWork:
    """The pieces of a round, each of which leaves its result for the next one."""

    target: TargetRows
    memory: Memory
    """The target's."""
    draft: ProposerRows
    settings: Settings
    current: Tensor
    """`(B,)`: each row's last token, which the target has not read yet."""
    noise: Tensor | None
    """`(B, 2·K + 1)`; None at temperature 0."""
    whole: bool
    """Whether slots that no row means are verified as well: shapes stay, and nothing is read."""
    proposal: Proposal = field(init=False)
    verdict: Verdict = field(init=False)
    told: Tensor = field(init=False)
    """`(B, 3 + K + C)` fp64, which holds ids and fp32 numbers exactly: see `Told`."""
    _states: Tensor = field(init=False)
    _logits: Tensor = field(init=False)

    def propose(self) -> None:
        """Draft behind the current tokens."""
        slots = 0 if self.noise is None else self.noise.shape[1] // 2
        noise = None if self.noise is None else self.noise[:, :slots]
        proposal = trusted(self.draft.propose(self.current, self.settings.temperature, noise), self.settings)
        self.proposal = proposal if self.whole else proposal.cut()

    def verify(self) -> None:
        """Let the target read the current tokens and what is proposed behind them."""
        read = torch.cat([self.current[:, None], self.proposal.tokens], 1)
        self._states, self._logits = self.target.step(read, self.memory)

    def choose(self) -> None:
        """Keep what the target keeps, and put into one tensor what the host has to know."""
        noise = None if self.noise is None else self.noise[:, self.noise.shape[1] // 2 :]
        self.verdict = verify(self.proposal, self._logits, self.settings.temperature, noise)
        self.memory.advance(self.verdict.accepted + 1)
        self.told = _told(self.proposal, self.verdict)

    @property
    def proposed(self) -> int:
        """Return how many slots were verified."""
        return self.proposal.tokens.shape[1]

    @property
    def own(self) -> Tensor:
        """Return the target's own token of each row, `(B,)`."""
        return self.verdict.token

    def commit(self) -> None:
        """Give the draft the states of what was kept."""
        accepted = self.verdict.accepted
        self.draft.commit(self._states, _read(self.current, self.proposal, self.verdict), accepted + 1)


@dataclass(frozen=True, slots=True)
class Told:
    """What the host has to know of one row's round."""

    proposed: int
    """Slots that were meant."""
    accepted: tuple[int, ...]
    """Drafted tokens that the target kept."""
    own: int
    """The target's token after them."""
    confidence: tuple[float, ...]
    """Logits of all slots; empty where the draft has none."""


def read_told(row: Sequence[float], slots: int) -> Told:
    """Return what a row of `RoundWork.told` says of a proposal of some slots."""
    proposed, accepted, own = map(int, row[:3])
    return Told(proposed, tuple(map(int, row[3 : 3 + accepted])), own, tuple(row[3 + slots :]))


def _told(proposal: Proposal, verdict: Verdict) -> Tensor:
    numbers = [proposal.lengths[:, None], verdict.accepted[:, None], verdict.token[:, None], proposal.tokens]
    if proposal.confidence is not None:
        numbers.append(proposal.confidence)
    return torch.cat([each.double() for each in numbers], 1)


def _read(current: Tensor, proposal: Proposal, verdict: Verdict) -> Tensor:
    """Return the tokens just read: the current and the drafted ones, and behind the last kept one the target's."""
    tokens = torch.cat([current[:, None], proposal.tokens, verdict.token[:, None]], 1)
    return tokens.scatter(1, verdict.accepted[:, None] + 1, verdict.token[:, None])

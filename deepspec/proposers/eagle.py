"""Drafts that read tokens one by one as their target does: Eagle3 token by token, P-EAGLE all in one pass.

Legend: B rows, C newly accepted positions (padded), K slots, A captured layers, D hidden size.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepspec.attention.attention import Masks, masks_of
from deepspec.kv.fixed import CachedRows, FixedCache
from deepspec.kv.rows import CachedLayer, RowCache
from deepspec.models.draft import EagleDraft
from deepspec.proposers.choose import at_most, choose, stacked
from deepspec.proposers.sampling import Proposal

OUTPUT = "output"
STATES, TOKENS, COUNTS = "fused states", "tokens behind them", "how many wait"
"""What a P-EAGLE proposer holds beside it of what was accepted and is not read yet."""
PIECE = 2048
"""Positions of a prompt that are read at once: what is held of each of them by every one before grows with it."""


class EagleProposer:
    """Eagle3: one token a pass, each fed with the output of the pass before."""

    def __init__(self, draft: EagleDraft, slots: int | None = None, stop_ids: frozenset[int] = frozenset()) -> None:
        """Propose `slots` tokens, by default as many as the draft was trained to; none behind a stop token."""
        self.draft = draft
        self.slots = draft.config.drafts if slots is None else slots
        self.layers: Sequence[int] = draft.config.target_layer_ids
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=draft.fc.weight.device)

    def rows(self, rows: int, capacity: int, device: torch.device) -> "EagleRows":
        """Return empty rows."""
        return EagleRows(self, RowCache(rows, capacity, device))


class EagleRows(CachedRows):
    """Rows of an Eagle3 proposer: the cache, and beside it the output at each row's last position."""

    def __init__(self, proposer: EagleProposer, cache: RowCache) -> None:
        """Keep the cache."""
        super().__init__(cache)
        self._proposer = proposer
        self._draft = proposer.draft
        self._ahead = 0
        norm = proposer.draft.norm.weight
        cache.hold(OUTPUT, norm.new_zeros(len(cache.lengths), len(norm)))

    @property
    def output(self) -> Tensor:
        """Return `(B, D)`: the block's output at each row's last accepted position."""
        return self._cache.held(OUTPUT)

    def commit(self, states: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Run the accepted positions, in place of what was drafted there; a long prompt in pieces."""
        after = tokens[:, 1:]
        for start in range(0, states.shape[1], PIECE):
            piece = slice(start, start + PIECE)
            self._run(states[:, piece], after[:, piece], (counts - start).clamp(0, PIECE))

    def _run(self, states: Tensor, after: Tensor, counts: Tensor) -> None:
        positions = self._cache.open(states.shape[1])
        fused = self._draft.fuse(states.to(self._draft.fc.weight.dtype))
        output, _ = self._draft(after, fused, positions, self._layers(), self._masks())
        last = output[torch.arange(len(output), device=output.device), (counts - 1).clamp(min=0)]
        self._cache.hold(OUTPUT, last.where((counts > 0)[:, None], self.output))
        self._cache.advance(counts)

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Draft token by token; the cache's entries for them stand until the next commit overwrites them."""
        self.rewind()
        output = self.output
        going = torch.ones_like(current, dtype=torch.bool)
        lengths = torch.zeros_like(current)
        tokens: list[Tensor] = []
        drawn: list[Tensor | None] = []
        for slot in range(self._proposer.slots):
            if slot > 0:
                output = self.advance(tokens[-1], output)
            logits = self._draft.logits(output)
            token, weights = choose(self._draft, logits, temperature, None if noise is None else noise[:, slot])
            tokens.append(token)
            drawn.append(weights)
            lengths += going
            going &= (token[:, None] != self._proposer.stop_ids).all(1)
            if not self._cache.fixed and not going.any():
                break
        self.rewind()
        return Proposal(tokens=torch.stack(tokens, 1), lengths=lengths, probabilities=stacked(drawn))

    def advance(self, token: Tensor, output: Tensor) -> Tensor:
        """Return the output `(B, D)` behind one more token, drafted or given, for which the cache takes a position."""
        positions = self._cache.open(1, self._ahead)
        state = self._draft.handed(output)[:, None]
        advanced, _ = self._draft(token[:, None], state, positions, self._layers(), self._masks())
        self._ahead += 1
        next_output: Tensor = advanced.squeeze(1)
        return next_output

    def _layers(self) -> list[CachedLayer]:
        return self._cache.as_context(self._draft.config.windows)

    def _masks(self) -> Masks:
        """Return what the positions that were opened last see."""
        return masks_of(self._draft.config.windows, self._cache.draft_mask)

    def rewind(self) -> None:
        """Forget the positions that `advance` took."""
        self._ahead = 0

    def fixed(self, rows: int, capacity: int) -> Self:
        """Return as many empty rows of fixed shapes."""
        return type(self)(self._proposer, FixedCache(rows, capacity, self._cache.lengths.device))


class ParallelProposer(EagleProposer):
    """P-EAGLE: all tokens in one pass over mask tokens."""

    def __init__(self, draft: EagleDraft, slots: int | None = None) -> None:
        """Take K from the draft, or fewer.

        Raises:
            CheckpointError: the draft was trained to propose fewer.
        """
        super().__init__(draft, at_most(draft.config.drafts, slots))

    def rows(self, rows: int, capacity: int, device: torch.device) -> "ParallelRows":
        """Return empty rows: mask tokens take room behind what was verified."""
        return ParallelRows(self, RowCache(rows, capacity + self.slots, device))


class ParallelRows(EagleRows):
    """Rows of a P-EAGLE proposer: what was accepted and the mask tokens behind it, in one pass.

    What a round accepted waits beside the cache for the next proposal, as wide as it can be whatever it was: so it goes
    where its row goes, and a recorded pass finds it.
    """

    def __init__(self, proposer: EagleProposer, cache: RowCache) -> None:
        """Keep the cache; nothing waits."""
        super().__init__(proposer, cache)
        rows, norm = len(cache.lengths), proposer.draft.norm.weight
        self._most = proposer.slots + 1
        """Positions that a round accepts at most."""
        cache.hold(STATES, norm.new_zeros(rows, self._most, len(norm)))
        cache.hold(TOKENS, cache.lengths.new_zeros(rows, self._most))
        cache.hold(COUNTS, cache.lengths.new_zeros(rows))

    def commit(self, states: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Run a prompt; keep what a round accepted for the next proposal's pass."""
        if not self._cache.fixed and not int(self._cache.lengths.max()):
            super().commit(states, tokens, counts)
            return
        fused = self._draft.fuse(states.to(self._draft.fc.weight.dtype))
        short = max(0, self._most - fused.shape[1])
        self._cache.hold(STATES, pad(fused, (0, 0, 0, short)))
        self._cache.hold(TOKENS, pad(tokens[:, 1:], (0, short)))
        self._cache.hold(COUNTS, counts.clone())

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Run what was accepted and the mask tokens, then sample each token on its own."""
        logits, tokens, drawn = self._draft.logits(self.outputs()), list[Tensor](), list[Tensor | None]()
        for slot in range(self._proposer.slots):
            uniform = None if noise is None else noise[:, slot]
            token, weights = choose(self._draft, logits[:, slot], temperature, uniform)
            tokens.append(token)
            drawn.append(weights)
        lengths = torch.full_like(current, len(tokens))
        return Proposal(tokens=torch.stack(tokens, 1), lengths=lengths, probabilities=stacked(drawn))

    def outputs(self) -> Tensor:
        """Return the last block's output for each token of a proposal, `(B, K, D)`."""
        counts = self._cache.held(COUNTS)
        waits = self._most if self._cache.fixed else int(counts.max())
        states, tokens = self._cache.held(STATES)[:, :waits], self._cache.held(TOKENS)[:, :waits]
        known = torch.arange(waits, device=counts.device) < counts[:, None]
        ids, masked = self._masked(waits + self._proposer.slots - 1)
        ids = torch.cat([tokens.where(known, ids[:, :waits]), ids[:, waits:]], dim=1)
        first = states.where(known[..., None], masked[:, :waits])
        read = [self.output[:, None]]  # of the last position before, which proposes where nothing waits
        if ids.shape[1]:
            read.append(self._pass(ids, torch.cat([first, masked[:, waits:]], dim=1)))
        places = counts[:, None] + torch.arange(self._proposer.slots, device=counts.device)
        outputs = torch.cat(read, dim=1)[torch.arange(len(places), device=places.device)[:, None], places]
        self._cache.advance(counts)
        self._cache.hold(OUTPUT, outputs[:, 0])
        self._cache.hold(COUNTS, torch.zeros_like(counts))
        return outputs

    def _masked(self, count: int) -> tuple[Tensor, Tensor]:
        """Return tokens and states of so many positions that are not known yet, `(B, count)` and `(B, count, D)`."""
        token, state = self._draft.masked()
        rows = len(self._cache.lengths)
        return token.expand(rows, count), state.expand(rows, count, -1)

    def _pass(self, ids: Tensor, states: Tensor) -> Tensor:
        positions = self._cache.open(ids.shape[1])
        output: Tensor = self._draft(ids, states, positions, self._layers(), self._masks())[0]
        return output

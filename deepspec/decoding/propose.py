"""The draft's side of decoding: from the target's states of what was accepted to the next proposal.

A proposer keeps its own rows: `commit` feeds it the states of newly accepted positions, `propose` drafts behind them.

Legend: B rows, C newly accepted positions (padded), K slots, A captured layers, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from deepspec.decoding.choose import choose, stacked
from deepspec.decoding.rows import RowCache
from deepspec.decoding.sampling import Proposal
from deepspec.errors import CheckpointError
from deepspec.formats.recipe import TRAITS
from deepspec.models.draft import BlockDraft, EagleDraft


class Proposer(Protocol):
    """Drafts for many rows at once."""

    slots: int
    """K: the most tokens that it proposes in a round."""
    layers: Sequence[int]
    """Target layers whose states it reads."""

    def rows(self, rows: int, capacity: int, device: torch.device) -> "ProposerRows":
        """Return empty rows."""


class ProposerRows(Protocol):
    """Rows of a proposer."""

    def commit(self, states: Tensor, after: Tensor, counts: Tensor) -> None:
        """Take in accepted positions.

        Args:
            states: `(B, C, A·D)` captured from the target.
            after: `(B, C)`: the token behind each position.
            counts: `(B,)` how many of the C positions count, at least 1.
        """

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Draft behind the current token.

        Args:
            current: `(B,)`: the last token, whose state the target has not computed yet.
            temperature: of the draft's distribution.
            noise: `(B, K)`; None at temperature 0.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""

    def replace(self, rows: Sequence[int], other: Self) -> None:
        """Put another's rows in the place of these."""


class NoProposer:
    """Proposes nothing: plain decoding, through the same code."""

    slots = 0
    layers: Sequence[int] = ()

    def rows(self, rows: int, capacity: int, device: torch.device) -> Self:
        """Return itself: it keeps nothing."""
        del rows, capacity, device
        return self

    def commit(self, states: Tensor, after: Tensor, counts: Tensor) -> None:
        """Need nothing."""

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Return a proposal of no slots."""
        del temperature, noise
        rows = len(current)
        empty = current.new_zeros(rows, 0)
        return Proposal(tokens=empty, lengths=current.new_zeros(rows), probabilities=empty[..., None].float())

    def keep(self, rows: Sequence[int]) -> None:
        """Need nothing."""

    def replace(self, rows: Sequence[int], other: Self) -> None:
        """Need nothing."""


class BlockProposer:
    """DSpark, DFlash and DFlash 2: one pass of the backbone, then slot after slot from left to right."""

    def __init__(self, draft: BlockDraft, slots: int | None = None) -> None:
        """Take K from the draft, or fewer.

        Raises:
            CheckpointError: the draft has no mask token, or shorter blocks.
        """
        mask, most = draft.config.mask_token_id, draft.config.drafts
        if mask is None:
            raise CheckpointError("a draft that proposes blocks needs a mask_token_id in its config.json")
        self.slots = _at_most(most, slots)
        self.draft = draft
        self.mask_id = mask
        self.layers: Sequence[int] = draft.config.target_layer_ids

    def rows(self, rows: int, capacity: int, device: torch.device) -> "BlockRows":
        """Return empty rows."""
        return BlockRows(self, RowCache(rows, capacity, device))


class BlockRows:
    """Rows of a block proposer: the cache holds the context, and behind it, for one pass, the block."""

    def __init__(self, proposer: BlockProposer, cache: RowCache) -> None:
        """Keep the cache."""
        self._proposer = proposer
        self._draft = proposer.draft
        self._cache = cache

    def commit(self, states: Tensor, after: Tensor, counts: Tensor) -> None:
        """Project the states to keys and values of context."""
        del after
        positions = self._cache.open(states.shape[1])
        context = self._draft.context(states.to(self._draft.fc.weight.dtype))
        for layer, own in enumerate(self._draft.context_keys_values(context, positions)):
            self._cache.update(own.key, own.value, layer)
        self._cache.advance(counts)

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Run the block, then sample each slot with what the token before it makes of its logits."""
        return self._sample(current, self.states(current), temperature, noise)

    def states(self, current: Tensor) -> Tensor:
        """Return the state of each slot after the final norm, `(B, K, D)`, those that propose nothing among them."""
        positions = self._cache.open(self._draft.config.first_slot + self._proposer.slots)
        ids = torch.full_like(positions, self._proposer.mask_id)
        ids[:, 0] = current
        context = self._cache.layers(self._draft.config.num_layers)
        hidden: Tensor = self._draft(ids, positions, context, self._cache.block_mask())
        return hidden

    def _sample(self, current: Tensor, hidden: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        draft, first = self._draft, self._draft.config.first_slot
        correction, logits = Correction(draft, hidden), draft.head(hidden)
        tokens, drawn = [current], []
        for slot in range(hidden.shape[1]):
            scores, ids = correction(slot, logits[:, slot], tokens[-1])
            if slot < first:
                continue
            uniform = None if noise is None else noise[:, slot - first]
            token, weights = choose(draft, scores, temperature, uniform, ids)
            tokens.append(token)
            drawn.append(weights)
        return Proposal(
            tokens=torch.stack(tokens[1:], 1),
            lengths=torch.full_like(current, len(drawn)),
            probabilities=stacked(drawn),
            confidence=self._confidence(hidden[:, first:], torch.stack(tokens[:-1], 1)),
        )

    def _confidence(self, hidden: Tensor, previous: Tensor) -> Tensor | None:
        if not self._draft.config.confidence_head:
            return None
        head = self._draft.markov_head
        return self._draft.confidence(hidden, None if head is None else head.embed(previous)).float()

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._cache.keep(rows)

    def replace(self, rows: Sequence[int], other: Self) -> None:
        """Put another's rows in the place of these."""
        self._cache.replace(rows, other._cache)


class Correction:
    """What the token before each slot makes of the slots' logits, from left to right."""

    def __init__(self, draft: BlockDraft, hidden: Tensor) -> None:
        """Take the states of a block's slots, `(B, K, D)`."""
        self._draft, self._hidden = draft, hidden
        head = draft.markov_head
        self._state = None if head is None else head.start(hidden[:, 0])

    def __call__(self, slot: int, logits: Tensor, previous: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a slot's scores, and the target's tokens that they are of; None: all that the head knows.

        Args:
            slot: the next one.
            logits: `(B, V)` of the slot.
            previous: `(B,)` the token before what it predicts.
        """
        head, selector = self._draft.markov_head, self._draft.candidate_selector
        if head is not None and self._state is not None:
            bias, self._state = head.step(previous, self._hidden[:, slot], self._state)
            logits = logits + bias
        if selector is None:
            return logits, None
        best = logits.float().topk(self._draft.config.selector_top_k, dim=-1)
        return best.values + selector(self._hidden[:, slot], previous, best.indices).float(), best.indices


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


class EagleRows:
    """Rows of an Eagle3 proposer: the cache and the output at each row's last position."""

    def __init__(self, proposer: EagleProposer, cache: RowCache) -> None:
        """Keep the cache."""
        self._proposer = proposer
        self._draft = proposer.draft
        self._cache = cache
        self._committed = cache.lengths
        norm = proposer.draft.norm.weight
        self.output = norm.new_zeros(len(cache.lengths), len(norm))
        """`(B, D)`: the block's output at each row's last accepted position."""

    def commit(self, states: Tensor, after: Tensor, counts: Tensor) -> None:
        """Run the accepted positions, in place of what was drafted there."""
        positions = self._cache.open(states.shape[1])
        fused = self._draft.fuse(states.to(self._draft.fc.weight.dtype))
        mask = None if self._cache.plainly_causal and states.shape[1] == 1 else self._cache.causal_mask()
        output, _ = self._draft(after, fused, positions, self._cache.layers(self._draft.config.num_layers), mask)
        self.output = output[torch.arange(len(output), device=output.device), counts - 1]
        self._cache.advance(counts)
        self._committed = self._cache.lengths

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Draft token by token; the cache's entries for them stand until the next commit overwrites them."""
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
            going &= ~torch.isin(token, self._proposer.stop_ids)
            if not going.any():
                break
        self.rewind()
        return Proposal(tokens=torch.stack(tokens, 1), lengths=lengths, probabilities=stacked(drawn))

    def advance(self, token: Tensor, output: Tensor) -> Tensor:
        """Return the output `(B, D)` behind one more token, drafted or given, for which the cache takes a position."""
        positions = self._cache.open(1)
        mask = None if self._cache.plainly_causal else self._cache.causal_mask()
        state = self._draft.handed(output)[:, None]
        advanced, _ = self._draft(
            token[:, None], state, positions, self._cache.layers(self._draft.config.num_layers), mask
        )
        self._cache.advance(1)
        next_output: Tensor = advanced.squeeze(1)
        return next_output

    def rewind(self) -> None:
        """Forget the positions that `advance` took."""
        self._cache.lengths = self._committed

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._cache.keep(rows)
        self._committed = self._cache.lengths
        self.output = self.output[list(rows)]

    def replace(self, rows: Sequence[int], other: Self) -> None:
        """Put another's rows in the place of these."""
        self._cache.replace(rows, other._cache)
        self._committed = self._cache.lengths
        self.output[list(rows)] = other.output


class ParallelProposer(EagleProposer):
    """P-EAGLE: all tokens in one pass over mask tokens."""

    def __init__(self, draft: EagleDraft, slots: int | None = None) -> None:
        """Take K from the draft, or fewer.

        Raises:
            CheckpointError: the draft was trained to propose fewer.
        """
        super().__init__(draft, _at_most(draft.config.drafts, slots))

    def rows(self, rows: int, capacity: int, device: torch.device) -> "ParallelRows":
        """Return empty rows."""
        return ParallelRows(self, RowCache(rows, capacity, device))


class ParallelRows(EagleRows):
    """Rows of a P-EAGLE proposer: what is accepted is read as by Eagle3's, mask tokens stand behind it for a pass."""

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Run the mask tokens, then sample each token on its own."""
        logits, tokens, drawn = self._draft.logits(self.outputs()), list[Tensor](), list[Tensor | None]()
        for slot in range(self._proposer.slots):
            token, weights = choose(
                self._draft, logits[:, slot], temperature, None if noise is None else noise[:, slot]
            )
            tokens.append(token)
            drawn.append(weights)
        lengths = torch.full_like(current, len(tokens))
        return Proposal(tokens=torch.stack(tokens, 1), lengths=lengths, probabilities=stacked(drawn))

    def outputs(self) -> Tensor:
        """Return the last block's output for each token of a proposal, `(B, K, D)`."""
        first = self.output[:, None]
        if self._proposer.slots == 1:
            return first
        positions = self._cache.open(self._proposer.slots - 1)
        token, state = self._draft.masked()
        context, mask = self._cache.layers(self._draft.config.num_layers), self._cache.causal_mask()
        states = state.expand(*positions.shape, -1)
        output, _ = self._draft(token.expand_as(positions), states, positions, context, mask)
        return torch.cat([first, output], dim=1)


def _at_most(most: int, slots: int | None) -> int:
    """Return how many tokens are proposed at a time: as many as asked for, all where nothing is asked."""
    if slots is not None and not 1 <= slots <= most:
        raise CheckpointError(f"cannot propose {slots} tokens: the draft was trained to propose {most} at a time")
    return most if slots is None else slots


def proposer_for(
    draft: BlockDraft | EagleDraft, slots: int | None = None, stop_ids: frozenset[int] = frozenset()
) -> BlockProposer | EagleProposer:
    """Return the proposer that drafts with a draft.

    Args:
        draft: in eval mode.
        slots: K; None takes the draft's own.
        stop_ids: tokens behind which nothing needs drafting.
    """
    if isinstance(draft, BlockDraft):
        return BlockProposer(draft, slots)
    if TRAITS[draft.config.algorithm].parallel:
        return ParallelProposer(draft, slots)
    return EagleProposer(draft, slots, stop_ids)

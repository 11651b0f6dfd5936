"""The draft's side of decoding: from the target's states of what was accepted to the next proposal.

A proposer keeps its own rows: `commit` feeds it the states of newly accepted positions, `propose` drafts behind them.

Legend: B rows, C newly accepted positions (padded), K slots, A captured layers, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor

from deepspec.attention.attention import masks_of
from deepspec.errors import CheckpointError
from deepspec.formats.recipe import TRAITS
from deepspec.kv.fixed import CachedRows, FixedCache
from deepspec.kv.rows import RowCache
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.proposers.choose import at_most, choose, stacked
from deepspec.proposers.eagle import EagleProposer, ParallelProposer
from deepspec.proposers.sampling import Proposal

LAST = "last"
"""What a refiner's cache holds beside it: the token at each row's last position."""
NO_TOKEN = -1


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

    def commit(self, states: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Take in accepted positions.

        Args:
            states: `(B, C, A·D)` captured from the target.
            tokens: `(B, C + 1)`: the token at each position, and the one behind the last; behind those that count,
                anything.
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

    def fixed(self, rows: int, capacity: int) -> Self:
        """Return as many empty rows of fixed shapes (fixed.py), whose passes can be recorded and replayed."""

    def adopt(self, other: Self) -> None:
        """Hold the rows of another that grow instead; these are of fixed shapes."""

    def shape(self, rows: int, span: int) -> None:
        """Choose the rows and positions of the next passes; these are of fixed shapes."""


class NoProposer:
    """Proposes nothing: plain decoding, through the same code."""

    slots = 0
    layers: Sequence[int] = ()

    def rows(self, rows: int, capacity: int, device: torch.device) -> Self:
        """Return itself: it keeps nothing."""
        del rows, capacity, device
        return self

    def commit(self, states: Tensor, tokens: Tensor, counts: Tensor) -> None:
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

    def fixed(self, rows: int, capacity: int) -> Self:
        """Return itself: it keeps nothing."""
        del rows, capacity
        return self

    def adopt(self, other: Self) -> None:
        """Need nothing."""

    def shape(self, rows: int, span: int) -> None:
        """Need nothing."""


class BlockProposer:
    """DSpark, DFlash, DFlash 2 and XPress: one pass of the backbone, then slot after slot from left to right."""

    def __init__(self, draft: BlockDraft, slots: int | None = None) -> None:
        """Take K from the draft, or fewer.

        Raises:
            CheckpointError: the draft has no mask token, or shorter blocks.
        """
        mask, most = draft.config.mask_token_id, draft.config.drafts
        if mask is None:
            raise CheckpointError("a draft that proposes blocks needs a mask_token_id in its config.json")
        self.slots = at_most(most, slots)
        self.draft = draft
        self.mask_id = mask
        self.layers: Sequence[int] = draft.config.target_layer_ids

    def rows(self, rows: int, capacity: int, device: torch.device) -> "BlockRows":
        """Return empty rows."""
        return BlockRows(self, RowCache(rows, capacity, device))


class BlockRows(CachedRows):
    """Rows of a block proposer: the cache holds the context, and behind it, for one pass, the block."""

    def __init__(self, proposer: BlockProposer, cache: RowCache) -> None:
        """Keep the cache."""
        super().__init__(cache)
        self._proposer = proposer
        self._draft = proposer.draft
        self._looks_back = proposer.draft.refiner_head is not None and proposer.draft.config.first_slot > 0
        if self._looks_back:
            cache.hold(LAST, torch.full_like(cache.lengths, NO_TOKEN))

    def commit(self, states: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Project the states to keys and values of context."""
        if self._looks_back:
            self._cache.hold(LAST, tokens.gather(1, counts[:, None] - 1)[:, 0])
        positions = self._cache.open(states.shape[1])
        context = self._draft.context(states.to(self._draft.fc.weight.dtype))
        for layer, own in enumerate(self._draft.context_keys_values(context, positions)):
            self._cache.update(own.key, own.value, layer)
        self._cache.advance(counts)

    def propose(self, current: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        """Run the block, then sample each slot with what the token before it makes of its logits."""
        return self._sample(current, self.states(current), temperature, noise)

    def before(self, current: Tensor) -> Tensor:
        """Return the token that a slot which proposes nothing takes for the one before it, `(B,)`: the current one.

        To a refiner the one before that, if there is one.
        """
        if not self._looks_back:
            return current
        last = self._cache.held(LAST)
        return last.where(last != NO_TOKEN, current)

    def states(self, current: Tensor) -> Tensor:
        """Return the state of each slot after the final norm, `(B, K, D)`, those that propose nothing among them."""
        positions = self._cache.open(self._draft.config.first_slot + self._proposer.slots)
        ids = torch.full_like(positions, self._proposer.mask_id)
        ids[:, 0] = current
        reaches = self._draft.config.reaches
        mask = masks_of(reaches, partial(self._cache.block_mask, self._draft.config.window_form))
        hidden: Tensor = self._draft(ids, positions, self._cache.as_context(reaches), mask)
        return hidden

    def _sample(self, current: Tensor, hidden: Tensor, temperature: float, noise: Tensor | None) -> Proposal:
        draft, first = self._draft, self._draft.config.first_slot
        correction, logits = Correction(draft, hidden), draft.head(hidden)
        tokens, drawn = [current], []
        for slot in range(hidden.shape[1]):
            previous = self.before(current) if slot < first else tokens[-1]
            scores, ids = correction(slot, logits[:, slot], previous)
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

    def fixed(self, rows: int, capacity: int) -> Self:
        """Return as many empty rows of fixed shapes."""
        return type(self)(self._proposer, FixedCache(rows, capacity, self._cache.lengths.device))


class Correction:
    """What the token before each slot makes of the slots' logits, from left to right."""

    def __init__(self, draft: BlockDraft, hidden: Tensor) -> None:
        """Take the states of a block's slots, `(B, K, D)`."""
        self._draft, self._hidden = draft, hidden
        head, refiner = draft.markov_head, draft.refiner_head
        self._state = None if head is None else head.start(hidden[:, 0])
        self._seen = None if refiner is None else refiner.seen(hidden)
        self._entered: list[Tensor] = []

    def __call__(self, slot: int, logits: Tensor, previous: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a slot's scores, and the target's tokens that they are of; None: all that the head knows.

        Args:
            slot: the next one.
            logits: `(B, V)` of the slot.
            previous: `(B,)` the token before what it predicts.
        """
        head, selector, refiner = self._draft.markov_head, self._draft.candidate_selector, self._draft.refiner_head
        if head is not None and self._state is not None:
            bias, self._state = head.step(previous, self._hidden[:, slot], self._state)
            logits = logits + bias
        if refiner is not None and self._seen is not None:
            self._entered.append(refiner.enter(self._seen[:, slot], previous))
            logits = logits + refiner.readout(refiner.last(torch.stack(self._entered, 1)))
        if selector is None:
            return logits, None
        best = logits.float().topk(self._draft.config.selector_top_k, dim=-1)
        return best.values + selector(self._hidden[:, slot], previous, best.indices).float(), best.indices


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

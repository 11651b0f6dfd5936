"""Blocks of K slots behind anchors: what is supervised in them, what a draft reads in them, and its states.

Slot k of a block at anchor i has input token i (k = 0) or MASK and rope position i + k. In the layout `shift` it
predicts token i + k + 1; in the layout `fill_in` token i + k, and the first slot predicts nothing.

Legend: B rows of samples, T positions, N blocks, K slots, R supervised slots, D hidden size.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deepspec.algorithms.base import PassWork, mean_pairs
from deepspec.algorithms.masks import Blocks, blocks_mask, form_for
from deepspec.algorithms.rows import Order, order_by_target
from deepspec.algorithms.weights import by_slot
from deepspec.attention.attention import Beside, masks_of
from deepspec.errors import TrainingError
from deepspec.formats.recipe import TRAITS, Objective
from deepspec.losses.terms import Terms
from deepspec.models.config import DraftConfig
from deepspec.models.draft import BlockDraft
from deepspec.records.batch import Batch, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSupervision:
    """The blocks of a batch."""

    starts: Tensor
    """`(B, N)` int64: where the sample of each anchor begins."""
    anchors: Tensor
    """`(B, N)` int64; 0 for dummy blocks."""
    keep: Tensor
    """`(B, N)` bool: False for dummy blocks."""
    real: Tensor
    """`(M,)` flat index of the blocks that are none."""
    labels: Tensor
    """`(B, N, K)` int64: positions of the predicted tokens, clamped into the row."""
    supervised: Tensor
    """`(B, N, K)` bool: a prefix of each block's drafted tokens; by the convention of speculators, any of them."""
    slot_weights: Tensor
    """`(K,)` exp(−d/γ), d drafted tokens before the slot."""
    dpace: float | None
    """α, where slots weigh by D-PACE; None: by their place."""
    true_labels: bool
    """Whether the true token is the label, or the target's most likely one."""
    terms: Terms
    confidence: float
    """Factor of the confidence loss."""
    selector: float
    """Factor of the selector's loss."""
    consistency: float
    """Factor of the loss of a refiner's passes over its own guesses."""
    consistency_passes: int
    base_anchor: float
    """Factor of the loss of the logits that a refiner begins with."""
    order: Order
    """Of the supervised slots."""
    work: PassWork
    denominators: dict[str, Tensor]
    """`weight`: the sum of the weights of all supervised slots, or how many there are."""
    first_slot: int
    """The first slot that predicts a token."""

    @property
    def holds_target(self) -> bool:
        """Return whether the loss reads the target's probabilities, or takes its labels from them."""
        return self.terms.held or not self.true_labels

    @property
    def drafted(self) -> slice:
        """Return the slots of a block that predict a token."""
        return slice(self.first_slot, None)


def supervise_blocks(
    config: DraftConfig, objective: Objective, terms: Terms, batch: Tokens, anchors: Tensor, keep: Tensor
) -> BlockSupervision:
    """Return the blocks behind given anchors `(B, N)`, real where `keep`, with the factors of their loss."""
    slots = torch.arange(config.block_size, device=anchors.device)
    labels = anchors[..., None] + slots + 1 - config.first_slot
    theirs = objective.convention == "speculators"
    chosen = _each(config, batch, anchors, keep) if theirs else _prefix(config, batch, anchors, keep)
    labels = labels.clamp(max=batch.input_ids.shape[1] - 1)
    weights = by_slot(config.block_size, objective.slot_decay, config.layout).to(anchors.device)
    by_place = objective.slot_weights == "decay"
    starts, order = batch.starts.gather(1, anchors), order_by_target(chosen, labels - 1)
    return BlockSupervision(
        starts=starts,
        anchors=anchors,
        keep=keep,
        real=keep.flatten().nonzero()[:, 0],
        labels=labels,
        supervised=chosen,
        slot_weights=weights,
        dpace=None if by_place else objective.dpace_alpha,
        true_labels=not theirs,
        terms=terms,
        confidence=objective.confidence,
        selector=objective.selector,
        consistency=objective.consistency,
        consistency_passes=objective.consistency_passes,
        base_anchor=objective.base_anchor,
        order=order,
        work=_work(batch, (anchors - starts)[keep], order, config),
        first_slot=config.first_slot,
        denominators={"weight": (chosen * weights).sum() if by_place and not theirs else chosen.sum().float()},
    )


def _prefix(config: DraftConfig, batch: Tokens, anchors: Tensor, keep: Tensor) -> Tensor:
    """Return which slots are supervised: those before the first whose token is not, or lies beyond the sample."""
    behind = torch.arange(1, config.drafts + 1, device=anchors.device)
    labels = anchors[..., None] + behind
    inside = labels < batch.ends.gather(1, anchors)[..., None]
    drafted = (inside & _at(batch.loss_mask, labels) & keep[..., None]).cumprod(-1).bool()
    return torch.nn.functional.pad(drafted, (config.first_slot, 0))


def _each(config: DraftConfig, batch: Tokens, anchors: Tensor, keep: Tensor) -> Tensor:
    """Return which slots are supervised by the convention of speculators: each by the mask at its own place."""
    slots = torch.arange(config.block_size, device=anchors.device)
    places = anchors[..., None] + slots
    inside = places + 1 - config.first_slot < batch.input_ids.shape[1]
    return inside & _at(batch.loss_mask, places) & keep[..., None] & (slots >= config.first_slot)


def _at(values_BT: Tensor, places_BNK: Tensor) -> Tensor:
    """Return the values at places, `(B, N, K)`; of a place beyond the row, the last."""
    places = places_BNK.clamp(max=values_BT.shape[1] - 1)
    return values_BT[:, None].expand(-1, places.shape[1], -1).gather(2, places)


def _work(batch: Tokens, seen_N: Tensor, order: Order, config: DraftConfig) -> PassWork:
    """Return the work of blocks, of each of which the slots see so many positions of the context and each other."""
    size = config.block_size
    own = torch.arange(1, size + 1, device=seen_N.device)  # a slot and those before it, as a window counts them
    context = mean_pairs(seen_N[:, None] + own, config.windows) - len(seen_N) * int(own.sum())
    return PassWork(
        context=int((batch.starts < batch.ends).sum()),
        slots=len(seen_N) * size,
        pairs=context + len(seen_N) * size**2,
        rows=len(order.rows),
        targets=len(order.target_positions),
    )


def block_inputs(config: DraftConfig, batch: Batch, supervision: BlockSupervision) -> tuple[Tensor, Tensor]:
    """Return the tokens and rope positions of all slots, `(B, N·K)` each; a dummy block is all MASK."""
    if config.mask_token_id is None:
        raise TrainingError("a block draft needs a mask token; its config has none")
    anchors, slots = supervision.anchors, torch.arange(config.block_size, device=supervision.anchors.device)
    ids = torch.full_like(supervision.labels, config.mask_token_id)
    first = batch.input_ids.gather(1, anchors)
    ids[..., 0] = first.where(supervision.keep, config.mask_token_id)
    return ids.flatten(1), ((anchors - supervision.starts)[..., None] + slots).flatten(1)


def backbone(model: BlockDraft, batch: Batch, supervision: BlockSupervision) -> Tensor:
    """Return the states of all slots after the final norm, `(B, N·K, D)`."""
    size, length = model.config.block_size, batch.input_ids.shape[1]
    ids, positions = block_inputs(model.config, batch, supervision)
    blocks = Blocks(supervision.starts, supervision.anchors, supervision.keep, size, model.config.window_form)
    mask = masks_of(model.config.windows, partial(blocks_mask, blocks, length, form_for(batch.hidden.device)))
    context = [Beside(each) for each in model.context_keys_values(model.context(batch.hidden), batch.positions)]
    states: Tensor = model(ids, positions, context, mask)
    return states


def previous_tokens(config: DraftConfig, batch: Batch, supervision: BlockSupervision) -> Tensor:
    """Return the true token before each slot's prediction, `(B, N, K)`: the anchor's for the first slot that has one.

    For a slot that predicts nothing, the anchor's, too; to a refiner, which reads that slot like the others, the one
    before it in its sample, if there is one.
    """
    slots = torch.arange(config.block_size, device=supervision.anchors.device)
    first = supervision.starts if TRAITS[config.algorithm].refined else supervision.anchors
    places = supervision.anchors[..., None] + slots - config.first_slot
    return _at(batch.input_ids, places.maximum(first[..., None]))


@dataclass(frozen=True, slots=True)
class RealBlocks:
    """The M blocks that are no dummies."""

    hidden: Tensor
    """`(M, K, D)` states of their slots after the final norm."""
    previous: Tensor
    """`(M, K)` the true token before each slot's prediction."""
    within: Tensor
    """`(R,)` flat index of the supervised slots into `(M, K)`."""


def real_blocks(config: DraftConfig, batch: Batch, supervision: BlockSupervision, hidden_BQD: Tensor) -> RealBlocks:
    """Return the real blocks of a batch, from the states of all slots, `(B, N·K, D)`."""
    size, rows_R = config.block_size, supervision.order.rows
    blocks_NKD = hidden_BQD.reshape(-1, size, hidden_BQD.shape[-1])
    previous_NK = previous_tokens(config, batch, supervision).flatten(0, 1)
    within_R = (supervision.keep.flatten().cumsum(0) - 1)[rows_R // size] * size + rows_R % size
    return RealBlocks(blocks_NKD[supervision.real], previous_NK[supervision.real], within_R)

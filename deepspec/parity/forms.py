"""A draft as it was trained, and as it decodes, on the same states; a target that reads step by step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepspec.algorithms.blocks import BlockAlgorithm
from deepspec.algorithms.chains import entries
from deepspec.algorithms.eagle3 import steps
from deepspec.algorithms.peagle import PEagle
from deepspec.algorithms.slots import backbone, previous_tokens
from deepspec.decoding.target_rows import TargetRows
from deepspec.errors import ParityError
from deepspec.formats.recipe import TRAITS, Objective
from deepspec.models.draft import BlockDraft, EagleDraft
from deepspec.proposers.eagle import EagleProposer, EagleRows, ParallelProposer, ParallelRows
from deepspec.proposers.propose import BlockProposer, BlockRows, Correction
from deepspec.records.batch import Batch, Record, collate
from deepspec.target.load import Target

ANCHORS = 8
"""Places of a text at which drafts are compared."""

STRIDE = 5
"""Tokens that the target reads at once where it reads step by step."""


def training_form(draft: BlockDraft | EagleDraft, input_ids: Tensor, hidden: Tensor) -> tuple[Tensor, list[int]]:
    """Return logits of drafted tokens as training computes them, and the positions of their anchors.

    Args:
        draft: the draft.
        input_ids: `(T,)`.
        hidden: `(T, A·D)` captured states.

    Returns:
        `(N, K, V)` logits behind N anchors, the text's own tokens given, and the anchors.
    """
    device, dtype = draft.fc.weight.device, draft.fc.weight.dtype
    size = draft.config.block_size
    anchors = _anchors(len(input_ids), size)
    batch = _batch(input_ids, hidden).to(device, dtype)
    if isinstance(draft, EagleDraft) and TRAITS[draft.config.algorithm].parallel:
        return draft.logits(_chained(draft, batch, anchors)), anchors
    if isinstance(draft, EagleDraft):
        outputs = steps(draft, batch, size)[0]
        places = torch.tensor(anchors, device=device) - 1
        return torch.stack([draft.logits(outputs[step, places]) for step in range(size)], 1), anchors
    chosen = torch.tensor([anchors], device=device)
    blocks = BlockAlgorithm(cross_entropy=1.0, total_variation=0.0).supervise_blocks(
        draft.config, Objective(), batch, chosen, torch.ones_like(chosen, dtype=torch.bool)
    )
    states = backbone(draft, batch, blocks)[0].view(len(anchors), size, -1)
    return _block_logits(draft, states, previous_tokens(draft.config, batch, blocks)[0]), anchors


def _chained(draft: EagleDraft, batch: Batch, anchors: Sequence[int]) -> Tensor:
    """Return what training computes of the chains whose rounds begin at anchors, `(N, K, D)`."""
    places = torch.tensor(anchors, device=batch.input_ids.device) - 1
    chosen, more = torch.zeros_like(batch.loss_mask), draft.config.drafts - 1
    chosen[0, places] = True
    chains = PEagle().supervise_chains(draft.config, Objective(), batch, (chosen, chosen * more))
    outputs = entries(draft, batch, chains)[0]
    masked = outputs[chosen.shape[1] :].view(len(anchors), more, -1)
    return torch.cat([outputs[places, None], masked], dim=1)


def decoding_form(draft: BlockDraft | EagleDraft, input_ids: Tensor, hidden: Tensor, anchors: Sequence[int]) -> Tensor:
    """Return the same logits as decoding computes them, its cache growing from anchor to anchor: `(N, K, V)`."""
    device = draft.fc.weight.device
    ids, states = input_ids.to(device)[None], hidden.to(device)[None]
    read = _read_eagle if isinstance(draft, EagleDraft) else _read_block
    return torch.stack(list(read(draft, ids, states, anchors)))


def _read_block(draft: Any, ids: Tensor, states: Tensor, anchors: Sequence[int]) -> list[Tensor]:
    size = draft.config.block_size
    rows: BlockRows = BlockProposer(draft).rows(1, ids.shape[1] + size, ids.device)
    found, start = [], 0
    for anchor in anchors:
        rows.commit(states[:, start:anchor], ids[:, start : anchor + 1], ids.new_tensor([anchor - start]))
        slots = rows.states(ids[:, anchor])
        first, before = draft.config.first_slot, rows.before(ids[:, anchor])
        previous = torch.cat([before[:, None][:, :first], ids[:, anchor : anchor + size - first]], dim=1)
        found.append(_block_logits(draft, slots, previous)[0])
        start = anchor
    return found


def _read_eagle(draft: Any, ids: Tensor, states: Tensor, anchors: Sequence[int]) -> list[Tensor]:
    size = draft.config.block_size
    proposer: EagleProposer = (
        ParallelProposer(draft) if TRAITS[draft.config.algorithm].parallel else EagleProposer(draft)
    )
    rows = proposer.rows(1, ids.shape[1] + size, ids.device)
    found, start = [], 0
    for anchor in anchors:
        rows.commit(states[:, start:anchor], ids[:, start : anchor + 1], ids.new_tensor([anchor - start]))
        given = ids[0, anchor : anchor + size]
        outputs = rows.outputs()[0] if isinstance(rows, ParallelRows) else _stepped(rows, given)
        found.append(draft.logits(outputs))
        start = anchor
    return found


def _stepped(rows: EagleRows, ids: Tensor) -> Tensor:
    """Return the outputs `(K, D)` of a round whose tokens are given, `(K,)`."""
    outputs = [rows.output]
    for token in ids[1:]:
        outputs.append(rows.advance(token[None], outputs[-1]))
    rows.rewind()
    return torch.cat(outputs)


def _block_logits(draft: BlockDraft, states: Tensor, previous: Tensor) -> Tensor:
    """Return logits `(N, K, V)` of slots' states `(N, K, D)`, the tokens before them `(N, K)` given.

    Where a selector corrects some tokens' logits, the others keep their own.
    """
    correction, found = Correction(draft, states), draft.head(states)
    for slot in range(states.shape[1]):
        scores, ids = correction(slot, found[:, slot], previous[:, slot])
        found[:, slot] = scores if ids is None else found[:, slot].scatter(1, ids, scores)
    return found


def stepwise(target: Target, layers: Sequence[int], input_ids: Tensor) -> Tensor:
    """Return the captured states `(T, A·D)` with the target reading a few tokens at a time, and taking some back."""
    rows = TargetRows(target, layers)
    cache = rows.memory(1, len(input_ids) + STRIDE)
    ids, found = input_ids.to(target.device)[None], []
    for start in range(0, ids.shape[1], STRIDE):
        chunk = ids[:, start : start + STRIDE]
        rows.step(chunk.flip(1), cache)
        cache.advance(0)  # all of it is rejected
        found.append(rows.step(chunk, cache)[0][0])
        cache.advance(chunk.shape[1])
    return torch.cat(found)


def _anchors(length: int, size: int) -> list[int]:
    last = length - size - 1
    if last < 1:
        raise ParityError(f"a text of {length} tokens is too short to compare blocks of {size}; give a longer one")
    count = min(ANCHORS, last)
    return sorted({1 + round(step * (last - 1) / max(count - 1, 1)) for step in range(count)})


def _batch(input_ids: Tensor, hidden: Tensor) -> Batch:
    size = hidden.shape[-1]
    mask = torch.ones_like(input_ids, dtype=torch.bool)
    record = Record(
        sample_id="parity",
        input_ids=input_ids,
        loss_mask=mask,
        hidden=hidden,
        last_hidden=hidden.new_zeros(len(input_ids), size),
    )
    return collate([record])

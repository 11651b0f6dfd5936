"""The same text through every form of target and draft: where do they part?

    cached states      what training read             against   the target now
    stepwise states    the target with its cache      against   the target in one pass
    decoding form      the draft with its cache       against   the draft as it was trained
    exported form      the draft read back            against   the draft

A draft that was trained on one thing and served on another is accepted a tenth as often and raises no error; this
gate does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from deepspec.records.batch import Batch, Record, collate, supervises
from deepspec.target.load import Target

STATES = {"bf16": 0.02, "bf16-zstd": 0.02, "fp8": 0.1}
"""Codec of a cache -> largest relative difference of a position's states that rounding explains."""
LOGITS = 2e-3
"""Largest difference of two logits, relative to the largest logit: another kernel rounds differently, in fp32."""
ANCHORS = 8
"""Places of a text at which drafts are compared."""
STRIDE = 5
"""Tokens that the target reads at once where it reads step by step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FormsCompared:
    """Two forms of one thing on one text."""

    name: str
    difference: float
    """The largest, relative to what is compared."""
    tolerance: float
    position: int | None
    """First token position at which the difference is above the tolerance."""

    @property
    def passed(self) -> bool:
        """Return whether the forms agree."""
        return self.difference <= self.tolerance  # False for NaN, too


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """What the gate found."""

    comparisons: tuple[FormsCompared, ...]

    @property
    def passed(self) -> bool:
        """Return whether all forms agree."""
        return all(each.passed for each in self.comparisons)

    def rows(self) -> list[dict[str, Any]]:
        """Return a table for people."""
        return [
            {
                "compared": each.name,
                "difference": f"{each.difference:.2e}",
                "tolerance": f"{each.tolerance:.0e}",
                "verdict": "pass" if each.passed else f"FAIL from position {each.position}",
            }
            for each in self.comparisons
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedStates:
    """One sample of a cache."""

    stored: Record
    """As the cache has it."""
    fresh: Record
    """As the target gives it now, in the dtype and the batches of the cache."""
    codec: str


@torch.inference_mode()
def check_parity(
    target: Target,
    draft: BlockDraft | EagleDraft,
    input_ids: Tensor,
    *,
    cached: CachedStates | None = None,
    forms: Mapping[str, BlockDraft | EagleDraft] | None = None,
) -> Parity:
    """Compare all forms on one text.

    Args:
        target: in fp32 for meaningful tolerances.
        draft: the draft as trained.
        input_ids: `(T,)` tokens of the text, longer than two blocks.
        cached: what a cache stores of the same text, if there is one.
        forms: name -> the draft as read back from an export.
    """
    layers = draft.config.target_layer_ids
    hidden = target.capture(input_ids[None], layers)[0][0]
    found = [] if cached is None else _cached_states(cached)
    found.append(_compare("stepwise states", _stepwise(target, layers, input_ids), hidden, LOGITS))
    found.append(_as_trained("decoding form", draft, draft, input_ids, hidden))
    found += [check_form(name, form, draft, input_ids, hidden) for name, form in (forms or {}).items()]
    return Parity(comparisons=tuple(found))


@torch.inference_mode()
def check_form(
    name: str,
    form: BlockDraft | EagleDraft,
    draft: BlockDraft | EagleDraft,
    input_ids: Tensor,
    hidden: Tensor,
) -> FormsCompared:
    """Compare a form that was read back, as it decodes, with the draft as it was trained, on captured states."""
    return _as_trained(f"exported form {name}", form, draft, input_ids, hidden)


def _as_trained(
    name: str, form: BlockDraft | EagleDraft, draft: BlockDraft | EagleDraft, input_ids: Tensor, hidden: Tensor
) -> FormsCompared:
    trained, positions = training_form(draft, input_ids, hidden)
    return _compare(name, decoding_form(form, input_ids, hidden, positions), trained, LOGITS, positions)


def states_now(target: Target, record: Record, layers: Sequence[int]) -> Record:
    """Return a record with the states that the target gives now."""
    hidden, last = target.capture(record.input_ids[None], layers)
    device = record.hidden.device
    return replace(record, hidden=hidden[0].to(device), last_hidden=last[0].to(device)[supervises(record.loss_mask)])


def _cached_states(cached: CachedStates) -> list[FormsCompared]:
    stored, fresh, tolerance = cached.stored, cached.fresh, STATES[cached.codec]
    kept = supervises(stored.loss_mask).nonzero().flatten().tolist()
    return [
        _compare("cached states", stored.hidden, fresh.hidden, tolerance),
        _compare("cached last states", stored.last_hidden, fresh.last_hidden, tolerance, kept),
    ]


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


def _stepwise(target: Target, layers: Sequence[int], input_ids: Tensor) -> Tensor:
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


def _compare(
    name: str, found: Tensor, wanted: Tensor, tolerance: float, positions: Sequence[int] | None = None
) -> FormsCompared:
    """Return the comparison of two tensors whose first axis is the token positions, or those given."""
    scale = wanted.float().flatten(1).abs().amax(1).clamp_min(1e-6)
    apart = (found.float() - wanted.float()).flatten(1).abs().amax(1) / scale
    beyond = [place for place, value in enumerate(apart.tolist()) if not value <= tolerance]
    place = beyond[0] if beyond else None
    return FormsCompared(
        name=name,
        difference=float(apart.max()),
        tolerance=tolerance,
        position=place if place is None or positions is None else positions[place],
    )


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

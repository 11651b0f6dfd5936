"""What a draft's training queries see, as the device likes it: a dense mask for SDPA on a CPU; elsewhere a range of the
context and the query's own entries (models/split.py), which take no memory of queries × keys.

Legend: B rows of samples, N blocks, K slots of a block, T context positions, S steps.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from deepspec.models.attention import Mask
from deepspec.models.split import Ranges, SplitMask

Form = Literal["dense", "split", "flex"]
"""Dense; or split, its ranges computed in plain arithmetic, or by flex_attention."""


def form_for(device: torch.device) -> Form:
    """Return the form of masks on a device."""
    return {"cpu": "dense", "cuda": "flex"}.get(device.type, "split")  # type: ignore[return-value]


def blocks_mask(
    starts_BN: Tensor, anchors_BN: Tensor, keep_BN: Tensor, block_size: int, context: int, form: Form = "dense"
) -> Mask:
    """Return the mask of N blocks of K slots over T context positions followed by all slots.

    A slot sees its sample's context strictly before its block's anchor, and its own block in both directions. The
    slots of a dummy block see nothing of the context.

    Args:
        starts_BN: where the anchors' samples begin.
        anchors_BN: anchors.
        keep_BN: False for dummy blocks.
        block_size: K.
        context: T.
        form: dense, or one of the others.
    """
    starts_BQ = starts_BN.repeat_interleave(block_size, dim=1)
    stops_BQ = anchors_BN.where(keep_BN, 0).repeat_interleave(block_size, dim=1)
    ranges = Ranges(starts_BQ, stops_BQ, context)
    if form != "dense":
        return _split(ranges, block_size, form)
    block = torch.arange(anchors_BN.shape[1], device=anchors_BN.device).repeat_interleave(block_size)
    own_B1QQ = ((block[:, None] == block) & keep_BN.repeat_interleave(block_size, dim=1)[..., None])[:, None]
    return torch.cat([ranges.dense(), own_B1QQ], dim=-1)


def steps_mask(starts_BT: Tensor, ends_BT: Tensor, step: int, form: Form = "dense") -> Mask:
    """Return Eagle3's mask at one step over the chunks of all steps up to it; but for the dense one, the same for all.

    A query sees its sample in the first chunk causally, and in each later one its own entry: the token that it drafted
    itself. In the dense form, queries whose token lies beyond their sample see nothing.

    Args:
        starts_BT: where the sample of each position begins.
        ends_BT: the position behind that sample's last token.
        step: s, from 0.
        form: dense, or one of the others.
    """
    position = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    reach = ends_BT if form != "dense" else ends_BT - step
    ranges = Ranges(starts_BT, (position + 1).where(position < reach, 0), len(position))
    if form != "dense":
        return _split(ranges, None, form)
    own_BTT = torch.eye(len(position), dtype=torch.bool, device=position.device) & (position < reach)[..., None]
    return torch.cat([ranges.dense(), own_BTT.repeat(1, 1, step)[:, None]], dim=-1)


def chains_mask(
    starts_BT: Tensor, ends_BT: Tensor, anchors_BN: Tensor, firsts_BN: Tensor, form: Form = "dense"
) -> Mask:
    """Return P-EAGLE's mask of T positions and the N mask tokens behind some of them, over both.

    A position sees its sample causally; a mask token its sample through its anchor, and the mask tokens of its chain
    up to itself. Padding sees itself, so that nothing is read of nothing.

    Args:
        starts_BT: where the sample of each position begins.
        ends_BT: the position behind that sample's last token.
        anchors_BN: the position that each mask token's chain hangs on.
        firsts_BN: the place, among the N, of the first mask token of its chain.
        form: dense, or one of the others.
    """
    place_BT = torch.arange(starts_BT.shape[1], device=starts_BT.device).expand_as(starts_BT)
    begin_BT, chain_BN = starts_BT.where(place_BT < ends_BT, place_BT), torch.arange(anchors_BN.shape[1])
    begin_BQ = torch.cat([begin_BT, starts_BT.gather(1, anchors_BN)], dim=1)
    ranges = Ranges(begin_BQ, torch.cat([place_BT, anchors_BN], dim=1) + 1, place_BT.shape[1])
    none_BT, ends_BN = torch.zeros_like(place_BT), chain_BN.to(anchors_BN.device).expand_as(anchors_BN) + 1
    own = Ranges(torch.cat([none_BT, firsts_BN], 1), torch.cat([none_BT, ends_BN], 1), anchors_BN.shape[1])
    if form == "dense":
        return torch.cat([ranges.dense(), own.dense()], dim=-1)
    blocks = own.blocks() if form == "flex" and own.context else None
    return replace(_split(ranges, None, form), own=own, own_blocks=blocks)


def _split(ranges: Ranges, slots: int | None, form: Form) -> SplitMask:
    return SplitMask(ranges, slots, ranges.blocks() if form == "flex" else None)

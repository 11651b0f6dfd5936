"""What a draft's training queries see, as the device likes it: a dense mask for SDPA on a CPU; elsewhere a range of the
context and the query's own entries (attention/split.py), which take no memory of queries × keys.

Legend: B rows of samples, N blocks, K slots of a block, T context positions, S steps.
"""

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from deepspec.attention.attention import Mask
from deepspec.attention.split import Ranges, SplitMask
from deepspec.models.config import WindowForm

MaskForm = Literal["dense", "split", "flex"]
"""Dense; or split, its ranges computed in plain arithmetic, or by flex_attention."""


class Blocks(NamedTuple):
    """N blocks of K slots behind anchors."""

    starts: Tensor
    """`(B, N)`: where the anchors' samples begin."""
    anchors: Tensor
    """`(B, N)`."""
    keep: Tensor
    """`(B, N)` bool: False for dummy blocks."""
    size: int
    """K."""
    window_form: WindowForm = "slot"


def form_for(device: torch.device) -> MaskForm:
    """Return the form of masks on a device."""
    return {"cpu": "dense", "cuda": "flex"}.get(device.type, "split")  # type: ignore[return-value]


def blocks_mask(blocks: Blocks, context: int, form: MaskForm = "dense", window: int | None = None) -> Mask:
    """Return the mask of N blocks of K slots over T context positions followed by all slots.

    A slot sees its sample's context strictly before its block's anchor, and its own block in both directions; in a
    causal window no slots behind it. The slots of a dummy block see nothing of the context.

    Args:
        blocks: of slots.
        context: T.
        form: dense, or one of the others.
        window: positions that a slot sees, its own among them, at least K; or positions of the context: see
            `WindowForm`; None: all.
    """
    _, anchors_BN, keep_BN, size, window_form = blocks
    starts_BQ = blocks.starts.repeat_interleave(size, dim=1)
    slots_K, of_slots = torch.arange(size, device=anchors_BN.device), window_form == "slot"
    places_BQ = (anchors_BN[..., None] + (slots_K if of_slots else torch.full_like(slots_K, -1))).flatten(1)
    causal = window is not None and window_form == "causal"
    stops_BQ = anchors_BN.where(keep_BN, 0).repeat_interleave(size, dim=1)
    ranges = Ranges(_near(starts_BQ, places_BQ, window), stops_BQ, context)
    if form != "dense":
        return replace(_split(ranges, size, form), causal=causal)
    block = torch.arange(anchors_BN.shape[1], device=anchors_BN.device).repeat_interleave(size)
    own_QQ = block[:, None] == block
    if causal:
        own_QQ = own_QQ.tril()
    own_B1QQ = (own_QQ & keep_BN.repeat_interleave(size, dim=1)[..., None])[:, None]
    return torch.cat([ranges.dense(), own_B1QQ], dim=-1)


def steps_mask(
    starts_BT: Tensor, ends_BT: Tensor, step: int, form: MaskForm = "dense", window: int | None = None
) -> Mask:
    """Return Eagle3's mask at one step over the chunks of all steps up to it.

    But for the dense one, and those with a window, it is the same for all steps.

    A query sees its sample in the first chunk causally, and in each later one its own entry: the token that it drafted
    itself. In the dense form, queries whose token lies beyond their sample see nothing.

    Args:
        starts_BT: where the sample of each position begins.
        ends_BT: the position behind that sample's last token.
        step: s, from 0.
        form: dense, or one of the others.
        window: positions that a query sees, its own among them, at least the steps; None: all.
    """
    position = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    reach = ends_BT if form != "dense" else ends_BT - step
    begin_BT = _near(starts_BT, (position + step).expand_as(starts_BT), window)
    ranges = Ranges(begin_BT, (position + 1).where(position < reach, 0), len(position))
    if form != "dense":
        return _split(ranges, None, form)
    own_BTT = torch.eye(len(position), dtype=torch.bool, device=position.device) & (position < reach)[..., None]
    return torch.cat([ranges.dense(), own_BTT.repeat(1, 1, step)[:, None]], dim=-1)


def chains_mask(
    starts_BT: Tensor,
    ends_BT: Tensor,
    anchors_BN: Tensor,
    firsts_BN: Tensor,
    form: MaskForm = "dense",
    window: int | None = None,
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
        window: positions that an entry sees, its own among them, at least the depths; None: all.
    """
    place_BT = torch.arange(starts_BT.shape[1], device=starts_BT.device).expand_as(starts_BT)
    begin_BT = starts_BT.where(place_BT < ends_BT, place_BT)
    chain_BN = torch.arange(anchors_BN.shape[1], device=anchors_BN.device).expand_as(anchors_BN)
    begin_BQ = torch.cat([begin_BT, starts_BT.gather(1, anchors_BN)], dim=1)
    places_BQ = torch.cat([place_BT, anchors_BN + chain_BN - firsts_BN + 1], dim=1)
    ranges = Ranges(_near(begin_BQ, places_BQ, window), torch.cat([place_BT, anchors_BN], dim=1) + 1, place_BT.shape[1])
    none_BT, ends_BN = torch.zeros_like(place_BT), chain_BN + 1
    own = Ranges(torch.cat([none_BT, firsts_BN], 1), torch.cat([none_BT, ends_BN], 1), anchors_BN.shape[1])
    if form == "dense":
        return torch.cat([ranges.dense(), own.dense()], dim=-1)
    blocks = own.blocks() if form == "flex" and own.context else None
    return replace(_split(ranges, None, form), own=own, own_blocks=blocks)


def _near(starts: Tensor, places: Tensor, window: int | None) -> Tensor:
    """Return where what queries at places see begins: with their samples, or with their windows."""
    return starts if window is None else torch.maximum(starts, places - (window - 1))


def _split(ranges: Ranges, slots: int | None, form: MaskForm) -> SplitMask:
    return SplitMask(ranges, slots, ranges.blocks() if form == "flex" else None)

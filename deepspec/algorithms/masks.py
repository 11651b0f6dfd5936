"""What a draft's training queries see: dense masks for SDPA, block masks for flex_attention.

Legend: B rows of samples, N blocks, K slots of a block, T context positions, S steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from deepspec.models.attention import Mask

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def blocks_mask(
    starts_BN: Tensor, anchors_BN: Tensor, keep_BN: Tensor, block_size: int, context: int, *, flex: bool
) -> Mask:
    """Return the mask of N blocks of K slots over T context positions followed by all slots.

    A slot sees its sample's context strictly before its block's anchor, and its own block in both directions. The
    slots of a dummy block see nothing.

    Args:
        starts_BN: where the anchors' samples begin.
        anchors_BN: anchors.
        keep_BN: False for dummy blocks.
        block_size: K.
        context: T.
        flex: a block mask for flex_attention instead of a dense one.
    """
    sees = _sees_block(starts_BN, anchors_BN, keep_BN, block_size, context)
    queries = anchors_BN.shape[1] * block_size
    return _mask(sees, anchors_BN, (len(anchors_BN), queries, context + queries), flex=flex)


def steps_mask(starts_BT: Tensor, ends_BT: Tensor, step: int, *, flex: bool) -> Mask:
    """Return Eagle3's mask at one step over the chunks of all steps up to it.

    A query sees its sample in the first chunk causally, and in each later one its own entry: the token that it drafted
    itself. Queries whose token lies beyond their sample see nothing.

    Args:
        starts_BT: where the sample of each position begins.
        ends_BT: the position behind that sample's last token.
        step: s, from 0.
        flex: a block mask for flex_attention instead of a dense one.
    """
    batch, context = starts_BT.shape
    sees = _sees_steps(starts_BT, ends_BT - step, context)
    return _mask(sees, starts_BT, (batch, context, context * (step + 1)), flex=flex)


def _mask(sees: MaskMod, like: Tensor, shape: tuple[int, int, int], *, flex: bool) -> Mask:
    batch, queries, keys = shape
    if flex:
        return create_block_mask(sees, B=batch, H=None, Q_LEN=queries, KV_LEN=keys, device=like.device)
    rows = torch.arange(batch, device=like.device)[:, None, None]
    query, key = torch.arange(queries, device=like.device)[:, None], torch.arange(keys, device=like.device)
    return sees(rows, rows, query, key)[:, None]


def _sees_block(starts_BN: Tensor, anchors_BN: Tensor, keep_BN: Tensor, block_size: int, context: int) -> MaskMod:
    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        block = query // block_size
        before = (key >= starts_BN[row, block]) & (key < anchors_BN[row, block])
        own = (key >= context) & ((key - context) // block_size == block)
        return keep_BN[row, block] & (before | own)

    return sees


def _sees_steps(starts_BT: Tensor, stops_BT: Tensor, context: int) -> MaskMod:
    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        causal = (key >= starts_BT[row, query]) & (key <= query)
        own = (key >= context) & (key % context == query)
        return (query < stops_BT[row, query]) & (causal | own)

    return sees

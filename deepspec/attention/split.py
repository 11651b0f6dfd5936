"""Training's attention where masks are dear: the context in one kernel, a query's own entries in a few products.

A training query sees a stretch of its context and, beside it, a handful of entries of its own: the other slots of its
block, or the tokens that it drafted itself. Softmax over both is softmax over each, merged by the logarithms of their
normalisers:

    out = Σ_i w_i · out_i,   w = softmax(lse_1, lse_2, …)

So the context needs no mask beyond "from here to there" for each query, the same for all layers and steps, and no
query is held against another query's entries at all. The gradient goes through the normalisers, too.

Legend: B batch, Q queries, C context length, H heads, G key/value heads, d head size, N blocks, K slots, S chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from deepspec.attention.flex import flex

TILE = 128
"""Queries and positions of a block that flex_attention computes or skips as a whole."""

MOST_BYTES = 8192
"""Of a block's queries in a group of heads, for which there is a kernel: four heads of 128 and seven slots take 7,168.

A program of it then fits into the shared memory of any card, 99 KB at least, where neither its scores nor a single row
of wide heads, rounded up to `SMALLEST`, takes more than twice that. Other blocks are products of torch."""
SMALLEST = 16
"""Rows and columns of the smallest product of a kernel; more are rounded up to a power of two."""

Attended = tuple[Tensor, Tensor]
"""What was read, `(B, H, Q, d)`, and the logarithm of the softmax's normaliser, `(B, H, Q)` fp32."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Which of C context positions each query sees: those from its start up to, and without, its stop."""

    starts: Tensor
    """`(B, Q)`."""
    stops: Tensor
    """`(B, Q)`; at most the start where a query sees nothing."""
    context: int
    """C."""

    def dense(self) -> Tensor:
        """Return it as a mask, `(B, 1, Q, C)` bool."""
        position = torch.arange(self.context, device=self.starts.device)
        return ((position >= self.starts[..., None]) & (position < self.stops[..., None]))[:, None]

    def blocks(self) -> BlockMask:
        """Return it as flex_attention's block mask; nothing of Q × C is made, and the host waits for nothing.

        Queries and positions are those of `in_tiles`: the kernel then asks nowhere whether it is within them.
        """
        if self.starts.is_cuda:
            from deepspec.attention import triton_own  # noqa: F401 - an operator; torch for CPUs comes without Triton

        some, whole = self._tiles()
        partial = some & ~whole
        queries = self.starts.shape[1]
        first, behind = (pad(each, (0, _spare_of(queries))) for each in (self.starts, self.stops))

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            del head
            return (key >= first[row, query]) & (key < behind[row, query])

        return BlockMask.from_kv_blocks(
            *_listed(partial), *_listed(whole), BLOCK_SIZE=TILE, mask_mod=sees,
            seq_lengths=(first.shape[1], self.context + _spare_of(self.context)),
        )  # fmt: skip

    def _tiles(self) -> tuple[Tensor, Tensor]:
        """Return which tiles of positions some query of a tile of queries sees, and which every one sees whole."""
        queries = self.starts.shape[1]
        spare = _spare_of(queries)
        empty_BQ = self.starts >= self.stops
        starts, stops, empty = (
            _cut(pad(each, (0, spare), value=value), 1, (-1, TILE))
            for each, value in ((self.starts, 0), (self.stops, 0), (empty_BQ, True))
        )
        beyond = torch.iinfo(starts.dtype).max
        lowest, highest = starts.masked_fill(empty, beyond).amin(2), stops.masked_fill(empty, 0).amax(2)
        real = torch.arange(starts.shape[1] * TILE, device=starts.device).view(-1, TILE) < queries
        all_from = starts.masked_fill(empty & real, beyond).amax(2)
        all_to = stops.masked_fill(~real, beyond).masked_fill(empty & real, 0).amin(2)
        begin = torch.arange(0, self.context + _spare_of(self.context), TILE, device=starts.device)
        end = begin + TILE
        some = (begin < highest[..., None]) & (end > lowest[..., None])
        return some, some & (begin >= all_from[..., None]) & (end <= all_to[..., None])


@dataclass(frozen=True, slots=True)
class SplitMask:
    """What training queries see: a range of the context, and entries of their own that stand behind it.

    Own entries are the K slots of a query's block, which see each other, or each those through itself; or a range of
    all that stand there; or, with neither, those at the query's own place in every later chunk of Q entries.
    """

    ranges: Ranges
    slots: int | None
    blocks: BlockMask | None = None
    """The ranges as flex_attention takes them; None: they are computed densely."""
    own: Ranges | None = None
    """Which of the entries behind the context each query sees, where that is a range."""
    own_blocks: BlockMask | None = None
    """The same as flex_attention takes it."""
    causal: bool = False
    """Whether a slot of a block sees none behind it."""


Held = tuple[Tensor, Tensor]
"""Rotated keys and values, `(B, G, …, d)` each."""


def attend_split(query_BHQd: Tensor, context: Held, own: Held | None, mask: SplitMask, scale: float) -> Tensor:
    """Return what the queries read of context and own entries, `(B, H, Q, d)`.

    Args:
        query_BHQd: rotated queries.
        context: of C positions, or of as many tiles as `in_tiles` makes of them.
        own: of the entries behind it; None: there are none.
        mask: what is seen.
        scale: factor on query·key.
    """
    queries = query_BHQd.shape[2]
    if mask.blocks is not None:
        query_BHQd = in_tiles(query_BHQd)
    parts = [_ranged(query_BHQd, *context, (mask.ranges, mask.blocks), scale)]
    if own is not None and mask.own is not None:
        parts.append(_ranged(query_BHQd, *own, (mask.own, mask.own_blocks), scale))
    elif own is not None and mask.slots:
        if query_BHQd.is_cuda and mask.blocks is not None and _is_small(query_BHQd, own[0], mask.slots):
            parts.append(_own_block_on_card(query_BHQd, *own, mask, scale))
        else:
            parts.append(_own_block(query_BHQd[:, :, :queries], *own, mask, scale))
    elif own is not None:
        parts.append(_own_chunks(query_BHQd[:, :, :queries], *own, mask, scale))
    parts = [(read[:, :, :queries], lse[:, :, :queries]) for read, lse in parts]
    return merged(parts) if len(parts) > 1 else parts[0][0]


def merged(parts: Sequence[Attended]) -> Tensor:
    """Return what is read of all parts together; a part of which a query sees nothing has the normaliser −inf."""
    weights = torch.softmax(torch.stack([lse for _, lse in parts]), dim=0)
    read = sum(weight[..., None] * out for weight, (out, _) in zip(weights, parts, strict=True))
    return torch.as_tensor(read).to(parts[0][0].dtype)


def _ranged(query: Tensor, key: Tensor, value: Tensor, seen: tuple[Ranges, BlockMask | None], scale: float) -> Attended:
    """Return what each query reads of a range of positions."""
    ranges, blocks = seen
    if blocks is None:
        edge = ranges.context
        return dense_attention(query, key[:, :, :edge], value[:, :, :edge], ranges.dense(), scale)
    key, value = (_in_so_many_tiles(each, blocks.kv_indices.shape[-1]) for each in (key, value))
    return flex(query, key, value, blocks, scale)


def in_tiles(tensor: Tensor) -> Tensor:
    """Return `(…, T, d)` in whole tiles of places, zeros behind those that are there: at least two, the last one spare.

    Compiled code has to see of the size itself, a number of tiles times `TILE`, that it is one of whole tiles: inductor
    looks at how it is written, and does not ask what is known of it. Else the kernel asks in each tile whether it is
    within them, and its backward pass takes 1.9 ms for 1.2 (Qwen3-4B's heads, an H200). And it never meets a size of
    one tile, or one that is whole by itself: each would be compiled anew, in the middle of a run. A tile that nothing
    is in costs next to nothing.
    """
    return pad(tensor, (0, 0, 0, _spare_of(tensor.shape[-2])))


def _in_so_many_tiles(tensor: Tensor, tiles: int) -> Tensor:
    """Return `in_tiles` of a tensor that may be so by now, and is not copied then: it has as many as its mask."""
    return tensor if tensor.shape[-2] == tiles * TILE else in_tiles(tensor)


def _spare_of(size: int) -> int:
    """Return what a size is short of its tiles; never 0, for that would be another kind of shape.

    Of its tiles, not of a sum of them: inductor does not see that b·(128·t + 256) is 128·b·t + 256·b.
    """
    return (size + 2 * TILE - 1) // TILE * TILE - size


def dense_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Attended:
    """Return attention with its normaliser in plain arithmetic; a query that sees nothing reads 0.

    Args:
        query: `(B, H, Q, d)`.
        key: `(B, G, C, d)`.
        value: of the same shape.
        seen: bool, broadcast to `(B, H, Q, C)`.
        scale: factor on query·key.
    """
    shape, groups = query.shape, key.shape[1]
    grouped = _grouped(query, groups).flatten(2, 3)  # (B, G, H/G · Q, d)
    scores = (grouped @ key.transpose(2, 3)).view(*shape[:3], -1).float() * scale
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).to(value.dtype)
    read = _grouped(weights, groups).flatten(2, 3) @ value
    return read.view(shape), lse


def _is_small(query: Tensor, key: Tensor, slots: int) -> bool:
    """Return whether the kernel takes a block's queries in a group of heads."""
    rows, size, each = query.shape[1] // key.shape[1] * slots, query.shape[3], query.element_size()
    block, scores, least = rows * size * each, rows * slots * each, SMALLEST * size * each
    return block <= MOST_BYTES and scores <= 2 * MOST_BYTES and least <= 2 * MOST_BYTES


def _own_block_on_card(query: Tensor, key: Tensor, value: Tensor, mask: SplitMask, scale: float) -> Attended:
    """Return the same by a kernel; `Ranges.blocks` has made the operator known."""
    read, lse = torch.ops.deepspec.own_block(query, key, value, mask.slots, mask.causal, scale)
    return read, lse


def _own_block(query: Tensor, key: Tensor, value: Tensor, mask: SplitMask, scale: float) -> Attended:
    """Return what each slot reads of its block."""
    size = (-1, mask.slots or 1)
    query_BGhNKd = _cut(_grouped(query, key.shape[1]), 3, size)
    key_BGNKd, value_BGNKd = _cut(key, 2, size), _cut(value, 2, size)
    scores = torch.einsum("bghnqd,bgnkd->bghnqk", query_BGhNKd, key_BGNKd).float() * scale
    if mask.causal:
        behind = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(behind, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None]).to(value.dtype)
    read = torch.einsum("bghnqk,bgnkd->bghnqd", weights, value_BGNKd)
    return read.flatten(3, 4).flatten(1, 2), lse.flatten(3, 4).flatten(1, 2)


def _own_chunks(query: Tensor, key: Tensor, value: Tensor, _: Any, scale: float) -> Attended:
    """Return what each query reads of the entries at its own place in later chunks."""
    size = (-1, query.shape[2])
    query_BGhQd = _grouped(query, key.shape[1])
    key_BGSQd, value_BGSQd = _cut(key, 2, size), _cut(value, 2, size)
    scores = (query_BGhQd[:, :, :, None].float() * key_BGSQd[:, :, None]).sum(-1) * scale  # (B, G, H/G, S, Q)
    lse = torch.logsumexp(scores, dim=3)
    weights = torch.exp(scores - lse[:, :, :, None]).to(value.dtype)
    read = (weights[..., None] * value_BGSQd[:, :, None].float()).sum(3).to(value.dtype)
    return read.flatten(1, 2), lse.flatten(1, 2)


def _grouped(query: Tensor, groups: int) -> Tensor:
    return _cut(query, 1, (groups, -1))


def _cut(tensor: Tensor, dim: int, sizes: tuple[int, int]) -> Tensor:
    """Return a tensor with one dimension cut into two."""
    return tensor.reshape(*tensor.shape[:dim], *sizes, *tensor.shape[dim + 1 :])


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many tiles each tile of queries has, `(B, 1, n)`, and which, those first, `(B, 1, n, m)`."""
    which = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1)[:, None].to(torch.int32), which[:, None].to(torch.int32)

"""Attention of a draft's block: queries over a cached context and their own chunk.

Legend: B batch, Q queries, C context length, D hidden size, H heads, G key/value heads, d head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from deepspec.attention.lean import RMSNorm, norm_of
from deepspec.attention.rope import rotate
from deepspec.attention.split import SplitMask, attend_split
from deepspec.families.shape import BlockShape

Rotation = tuple[Tensor, Tensor]
Mask = Tensor | SplitMask | None
"""Dense boolean `(B, 1, Q, KV)`, True where a query sees a key; or a range of them and own entries; None: all seen."""


@dataclass(frozen=True, slots=True)
class LayerMasks:
    """Masks of a draft of which only some layers have a window."""

    full: Mask
    near: Mask
    """Of those that have."""


Masks = Mask | LayerMasks
"""What the queries of all layers see."""


def masks_of(windows: Sequence[int | None], make: Callable[[int | None], Mask]) -> Masks:
    """Return the masks of a draft's layers.

    Args:
        windows: of each layer; None: it sees everything before it.
        make: window -> mask.
    """
    kinds = sorted({window or 0 for window in windows})
    made = [make(window or None) for window in kinds]
    return made[0] if len(made) == 1 else LayerMasks(full=made[0], near=made[1])


def mask_of(masks: Masks, window: int | None) -> Mask:
    """Return the mask of a layer with a window, or with none."""
    if isinstance(masks, LayerMasks):
        return masks.full if window is None else masks.near
    return masks


@dataclass(frozen=True, slots=True)
class KeyValue:
    """Rotated keys and values of one layer, `(B, G, C, d)` each."""

    key: Tensor
    value: Tensor

    def __len__(self) -> int:
        """Return the number of positions."""
        return self.key.shape[2]

    def append(self, other: Self) -> Self:
        """Return these positions followed by others."""
        return type(self)(torch.cat((self.key, other.key), dim=2), torch.cat((self.value, other.value), dim=2))

    def cut(self, length: int) -> Self:
        """Return the first `length` positions, as views."""
        return type(self)(self.key[:, :, :length], self.value[:, :, :length])


@dataclass(frozen=True, slots=True)
class Beside:
    """A context that is read beside the chunk behind it: the two are not copied together."""

    context: KeyValue
    own: KeyValue | None = None

    def append(self, other: KeyValue) -> "Beside":
        """Return the context with the chunk behind it."""
        return Beside(self.context, other)


InView = KeyValue | Beside
"""What queries may see: in one piece, or context and own chunk apart, for a mask that asks no more."""


class Context(Protocol):
    """Keys and values that came before, however they are kept: appended anew each time, beside, in a cache by rows."""

    def append(self, other: KeyValue, /) -> InView:
        """Return everything kept, with another chunk behind it."""


class Past(Protocol):
    """A context in one piece, which the next chunk is appended to in its turn."""

    def append(self, other: KeyValue, /) -> KeyValue:
        """Return everything kept, with another chunk behind it."""


class Attention(nn.Module):
    """Grouped-query attention whose traits are decided when it is built."""

    def __init__(self, shape: BlockShape, input_size: int) -> None:
        """Make the projections; `input_size` is 2·D where an embedding and a state enter side by side."""
        super().__init__()
        self.head_dim = shape.head_dim
        self.scale = shape.attention_scale
        query_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(input_size, query_size * (2 if shape.gated_attention else 1), bias=False)
        self.k_proj = nn.Linear(input_size, kv_size, bias=False)
        if not shape.tied_kv:
            self.v_proj = nn.Linear(input_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)
        self.q_norm: nn.Module = norm_of(shape, shape.head_dim) if shape.qk_norm else nn.Identity()
        self.k_norm: nn.Module = norm_of(shape, shape.head_dim) if shape.qk_norm else nn.Identity()
        self.v_norm: nn.Module = (
            RMSNorm(shape.head_dim, shape.norm_eps, elementwise_affine=False) if shape.v_norm else nn.Identity()
        )
        self._tied, self._gated = shape.tied_kv, shape.gated_attention

    def keys_values(self, x_BTD: Tensor, rotation: Rotation) -> KeyValue:
        """Return the keys and values of some positions."""
        return self.keyed([project(x_BTD) for project in self.into_context()], rotation)

    def into_context(self) -> list[nn.Linear]:
        """Return what makes keys and values of positions, before their norms; one projection where they are tied."""
        return [self.k_proj] if self._tied else [self.k_proj, self.v_proj]

    def keyed(self, projected: Sequence[Tensor], rotation: Rotation) -> KeyValue:
        """Return the keys and values of what `into_context` made of some positions, `(B, T, G·d)` each."""
        key_BTGd, value_BTGd = self._split(projected[0]), self._split(projected[-1])
        return KeyValue(
            rotate(self.k_norm(key_BTGd).transpose(1, 2), rotation), self.v_norm(value_BTGd).transpose(1, 2)
        )

    def queries(self, x_BQD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor | None]:
        """Return rotated queries, `(B, H, Q, d)`, and the gate on what they read, `(B, Q, H·d)`, if there is one."""
        return self.queried(self.q_proj(x_BQD), rotation)

    def queried(self, raw: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor | None]:
        """Return the same of what `q_proj` made of the inputs."""
        gate = None
        if self._gated:  # of each head first the query, then the gate
            raw, gates = raw.view(*raw.shape[:-1], -1, 2, self.head_dim).unbind(-2)
            raw, gate = raw.flatten(-2), gates.flatten(-2)
        return rotate(self.q_norm(self._split(raw)).transpose(1, 2), rotation), gate

    def forward(self, x_BQD: Tensor, rotation: Rotation, seen: InView, mask: Mask) -> Tensor:
        """Return what the queries read.

        Args:
            x_BQD: inputs of the queries.
            rotation: cos and sin at the queries' positions.
            seen: every key and value that a query may see, in the order of the mask's last axis.
            mask: what is seen; a query that sees nothing reads 0.

        Returns:
            `(B, Q, D)`.
        """
        return self.read(*self.queries(x_BQD, rotation), seen, mask)

    def read(self, query_BHQd: Tensor, gate: Tensor | None, seen: InView, mask: Mask) -> Tensor:
        """Return what rotated queries read, `(B, Q, D)`; arguments as `queries` returns and `forward` takes them."""
        read_BQE = attend(query_BHQd, seen, mask, self.scale).transpose(1, 2).flatten(2)
        read: Tensor = self.o_proj(read_BQE if gate is None else read_BQE * gate.sigmoid())
        return read

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)


def attend(query_BHQd: Tensor, seen: InView, mask: Mask, scale: float) -> Tensor:
    """Return softmax(scale · q·k) v over what the mask shows."""
    if isinstance(mask, SplitMask):
        if isinstance(seen, KeyValue):
            edge, queries = mask.ranges.context, query_BHQd.shape[2]
            edge = queries if edge == queries else edge  # one size, written in one way: see split.in_tiles
            own = KeyValue(seen.key[:, :, edge:], seen.value[:, :, edge:]) if len(seen) > edge else None
            seen = Beside(seen.cut(edge), own)
        own = seen.own
        parts = (seen.context.key, seen.context.value), None if own is None else (own.key, own.value)
        return attend_split(query_BHQd, *parts, mask, scale)
    if isinstance(seen, Beside):
        seen = seen.context if seen.own is None else seen.context.append(seen.own)
    grouped = query_BHQd.shape[1] != seen.key.shape[1]
    if grouped and mask is not None and mask.device.type == "cuda" and torch.is_inference_mode_enabled():
        return attend_grouped(query_BHQd, seen.key, seen.value, mask, scale)
    return scaled_dot_product_attention(
        query_BHQd, seen.key, seen.value, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def attend_grouped(
    query_BHQd: Tensor, key_BGCd: Tensor, value_BGCd: Tensor, mask: Tensor, scale: float | None
) -> Tensor:
    """Return attention whose query heads of a group are queries of one head: keys and values are read once.

    A card's kernels that take a mask take no groups of heads, and would be given a copy of keys and values for each.
    Every query has to see something.

    Args:
        query_BHQd: H a multiple of G.
        key_BGCd: as they are kept.
        value_BGCd: of the same shape.
        mask: `(B or 1, 1, Q, C)`, boolean or added to the scores.
        scale: on query·key; None: 1 / √d.
    """
    batch, heads, queries, size = query_BHQd.shape
    groups = key_BGCd.shape[1]
    folded = query_BHQd.reshape(batch, groups, heads // groups * queries, size)
    mask = mask.repeat(1, 1, heads // groups, 1) if queries > 1 else mask
    read = scaled_dot_product_attention(folded, key_BGCd, value_BGCd, attn_mask=mask, scale=scale)
    return read.reshape(batch, heads, queries, size)

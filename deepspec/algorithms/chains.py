"""Chains of mask tokens behind positions: which are drawn, what is supervised in them, and a draft's states there.

Position t reads token t + 1 and its own state, as in Eagle3, and predicts token t + 2. The entry of depth d behind an
anchor a stands at position a + d, reads the mask token and a learned state, sees the context through a and its own
chain, and predicts token a + d + 2. Position a itself is depth 0 of its chain.

Legend: B rows of samples, T positions, N mask tokens, G = T + N entries, K depths, R supervised entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepspec.algorithms.base import PassWork, mean_pairs
from deepspec.algorithms.masks import chains_mask, form_for
from deepspec.algorithms.rows import Order, order_by_target
from deepspec.attention.attention import masks_of
from deepspec.formats.recipe import Objective
from deepspec.losses.terms import Terms
from deepspec.models.config import DraftConfig
from deepspec.models.draft import EagleDraft
from deepspec.records.batch import Batch, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainSupervision:
    """The entries of a batch: its T positions, then N mask tokens, those of a chain side by side."""

    anchors: Tensor
    """`(B, G)` int64: the position that an entry's chain hangs on; of a position, itself."""
    depths: Tensor
    """`(B, G)` int64: 0 for positions, from 1 on for mask tokens; 0 also for mask tokens that only pad."""
    firsts: Tensor
    """`(B, N)` int64: the place, among the N, of the first mask token of each one's chain."""
    supervised: Tensor
    """`(B, G)` bool."""
    true_labels: bool
    """Whether an entry is trained on only where the draft knows the true token."""
    terms: Terms
    order: Order
    """Of the supervised entries."""
    work: PassWork
    denominators: dict[str, Tensor]
    """`weight`: how many entries are supervised."""


def supervise_chains(
    config: DraftConfig, objective: Objective, terms: Terms, batch: Tokens, chains: tuple[Tensor, Tensor]
) -> ChainSupervision:
    """Return the entries of given chains.

    Args:
        config: the draft.
        objective: what is trained for.
        terms: the factors of its loss.
        batch: the samples.
        chains: positions that are supervised themselves, `(B, T)` bool, and how many mask tokens stand behind each,
            `(B, T)` int64.
    """
    first, lengths = chains
    anchors, depths, firsts = _entries(lengths, config.drafts)
    place_BT = torch.arange(first.shape[1], device=first.device).expand_as(first)
    anchors_BG = torch.cat([place_BT, anchors], dim=1)
    depths_BG = torch.cat([torch.zeros_like(place_BT), depths], dim=1)
    last = first.shape[1] - 1
    wanted_BN = supervised_places(batch, objective).gather(1, (anchors + depths).clamp(max=last)) & (depths > 0)
    supervised_BG = torch.cat([first, wanted_BN], dim=1)
    order = order_by_target(supervised_BG, anchors_BG + depths_BG + 1)
    return ChainSupervision(
        anchors=anchors_BG,
        depths=depths_BG,
        firsts=firsts,
        supervised=supervised_BG,
        true_labels=objective.convention != "speculators",
        terms=terms,
        order=order,
        work=_work(batch, anchors, depths, order, config),
        denominators={"weight": supervised_BG.sum().float()},
    )


def draw_chains(config: DraftConfig, objective: Objective, batch: Tokens, keys: Sequence[int]) -> Tensor:
    """Return how many mask tokens stand behind each position, `(B, T)` int64: conditional drop of depths.

    Of |S| supervised positions of a sample, `num_anchors` at most, ⌊(|S| − d)·max(r^d, r_min)⌋ of the chains that are
    as long as d − 1 and whose next position is supervised go on to depth d, drawn at random. A sample's chains depend
    on its key and its own tokens alone.

    Args:
        config: the draft.
        objective: with r, r_min and `num_anchors`.
        batch: the samples, in host memory.
        keys: a function of (seed, epoch, sample id) each.
    """
    supervised_BT = supervised_places(batch, objective)
    lengths_BT = torch.zeros_like(batch.input_ids)
    anchored = objective.convention != "speculators"
    for (row, start, end), key in zip(batch.spans(), keys, strict=True):
        own_T = supervised_BT[row, start:end]
        scores_T = torch.rand(end - start, generator=torch.Generator().manual_seed(key))
        count = min(int(own_T.sum()), objective.num_anchors)
        going_T = _lowest(_moved(own_T, 1) & own_T if anchored else _moved(own_T, 1), scores_T, count)
        for depth in range(1, config.drafts):
            share = max(objective.depth_ratio**depth, objective.depth_ratio_min)
            going_T = _lowest(going_T & _moved(own_T, depth), scores_T, int(max(0, count - depth) * share))
            lengths_BT[row, start:end] += going_T
    return lengths_BT


def entries(model: EagleDraft, batch: Batch, supervision: ChainSupervision) -> Tensor:
    """Return the last block's output at every entry, before the final norm: `(B, G, D)`."""
    anchors, firsts = supervision.anchors, supervision.firsts
    rows, length = batch.input_ids.shape
    token, state = model.masked()
    told = (batch.starts, batch.ends, anchors[:, length:], firsts, form_for(batch.hidden.device))
    mask = masks_of(model.config.windows, partial(chains_mask, *told))
    ids = torch.cat([batch.ahead(batch.input_ids, 1), token.expand(rows, firsts.shape[1])], dim=1)
    states = torch.cat([model.fuse(batch.hidden), state.expand(rows, firsts.shape[1], -1)], dim=1)
    positions = anchors - batch.starts.gather(1, anchors) + supervision.depths
    output: Tensor = model(ids, states, positions, None, mask)[0]
    return output


def supervised_places(batch: Tokens, objective: Objective) -> Tensor:
    """Return which positions are supervised, `(B, T)`: by the token that is predicted, or the one that is read."""
    return batch.ahead(batch.loss_mask, 1 if objective.convention == "speculators" else 2)


def _entries(lengths_BT: Tensor, num_depths: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return anchor, depth and place of the chain's first of each mask token, `(B, N)` each, N that of the fullest row.

    Those that only pad have anchor and depth 0, and are a chain of their own.
    """
    depth = torch.arange(num_depths - 1, device=lengths_BT.device)
    row_M, anchor_M, depth_M = (depth < lengths_BT[..., None]).nonzero(as_tuple=True)
    counts_B = lengths_BT.sum(1)
    place_M = torch.arange(len(row_M), device=row_M.device) - (counts_B.cumsum(0) - counts_B)[row_M]
    shape = (len(lengths_BT), int(counts_B.max()))
    anchors, depths = lengths_BT.new_zeros(shape), lengths_BT.new_zeros(shape)
    firsts = torch.arange(shape[1], device=lengths_BT.device).expand(shape).clone()
    anchors[row_M, place_M], depths[row_M, place_M], firsts[row_M, place_M] = anchor_M, depth_M + 1, place_M - depth_M
    return anchors, depths, firsts


def _moved(values_T: Tensor, places: int) -> Tensor:
    """Return the values so many places further on; False beyond the end."""
    return pad(values_T, (0, places))[places:]


def _lowest(wanted_T: Tensor, scores_T: Tensor, count: int) -> Tensor:
    """Return which of the wanted positions have the lowest scores, at most so many."""
    rank_T = torch.where(wanted_T, scores_T, 2.0).argsort(stable=True).argsort()
    return wanted_T & (rank_T < count)


def _work(batch: Tokens, anchors_BN: Tensor, depths_BN: Tensor, order: Order, config: DraftConfig) -> PassWork:
    """Return the work of all entries: each sees its sample through its anchor, and its chain through itself."""
    positions, masks = batch.starts < batch.ends, depths_BN > 0
    seen_BN = anchors_BN - batch.starts.gather(1, anchors_BN) + 1 + depths_BN
    return PassWork(
        context=int(positions.sum()),
        slots=int(positions.sum()) + int(masks.sum()),
        pairs=mean_pairs(torch.cat([(batch.positions + 1)[positions], seen_BN[masks]]), config.windows),
        rows=len(order.rows),
        targets=len(order.target_positions),
    )

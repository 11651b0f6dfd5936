"""P-EAGLE in training: chains of mask tokens behind sampled positions, all depths in one pass. arXiv 2602.01469.

Of chains a share that falls with their depth is drawn. What they are: chains.py.

Legend: B rows of samples, T positions, K depths, R supervised entries.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from deepspec.algorithms.anchors import position_groups
from deepspec.algorithms.base import Drafted, LossResult, check_tokens
from deepspec.algorithms.chains import ChainSupervision, draw_chains, entries, supervise_chains, supervised_places
from deepspec.algorithms.eagle3 import TERMS, terms_of
from deepspec.algorithms.rows import diverged, head_of, ratio
from deepspec.formats.recipe import Objective
from deepspec.losses.chunked import chunked_loss
from deepspec.losses.rows import RowLosses, Rows
from deepspec.models.config import DraftConfig
from deepspec.models.draft import EagleDraft
from deepspec.records.batch import Batch, Tokens


class PEagle:
    """P-EAGLE: the terms of Eagle3's loss over the entries of all depths, each of the same weight."""

    def supervise(
        self, config: DraftConfig, objective: Objective, batch: Tokens, keys: Sequence[int]
    ) -> ChainSupervision:
        """Draw chains and return what is supervised.

        Raises:
            TrainingError: a sample contains the mask token, or a token beyond the vocabulary.
        """
        check_tokens(config, batch)
        drawn = supervised_places(batch, objective), draw_chains(config, objective, batch, keys)
        return self.supervise_chains(config, objective, batch, drawn)

    def supervise_chains(
        self, config: DraftConfig, objective: Objective, batch: Tokens, chains: tuple[Tensor, Tensor]
    ) -> ChainSupervision:
        """Return the entries of given chains, as the function of this name takes them."""
        return supervise_chains(config, objective, terms_of(objective), batch, chains)

    def loss(
        self,
        model: EagleDraft,
        batch: Batch,
        supervision: ChainSupervision,
        denominators: Mapping[str, Tensor],
        *,
        measure: bool = True,
    ) -> LossResult:
        """Return the loss of all depths, and sums for metrics; arguments as in `Algorithm.loss`."""
        order, num_depths = supervision.order, model.config.drafts
        known_R = model.draft_ids(_tokens(batch, supervision))[1].float()
        trained_R = known_R if supervision.true_labels else torch.ones_like(known_R)
        weights_R = trained_R / denominators["weight"].clamp(min=1)
        rows = _rows(model, batch, supervision, torch.zeros_like(order.rows), weights_R)
        head = head_of(model, whole=measure)
        loss, measured = chunked_loss(rows, head, supervision.terms)
        depth_R = supervision.depths.flatten()[order.rows]
        at_RK = depth_R[:, None] == torch.arange(num_depths, device=depth_R.device)
        sums = {
            "loss": loss.detach(),
            "blocks": at_RK[:, 0].sum(),
            "supervised": at_RK.sum(0),
            "known": known_R.sum(),
        }
        told = {"soft_cross_entropy": measured.soft_cross_entropy, **diverged(measured)}
        sums |= {name: (values * trained_R) @ at_RK.to(values.dtype) for name, values in told.items()}
        if measure or not model.config.reduced_vocabulary:  # its distances are at hand anyway
            counted = torch.ones_like(trained_R) if head.whole is not None else trained_R
            sums |= _accepted(supervision, num_depths, measured, counted)
        return LossResult(loss=loss, sums=sums)

    def slots(self, config: DraftConfig) -> int:
        """Return how many tokens a pass proposes."""
        return config.drafts

    def drafted(self, model: EagleDraft, batch: Batch, begins: Tensor, most: int) -> Iterator[Drafted]:
        """Yield the chains of the rounds at chosen positions; arguments as in `Algorithm.drafted`.

        A round that begins at a token goes out from the position before it, whose input that token is.
        """
        num_depths, length = self.slots(model.config), batch.input_ids.shape[1]
        for places, keep in position_groups(begins, most):
            chosen, (row, column) = torch.zeros_like(begins), keep.nonzero(as_tuple=True)
            chosen[row, places[row, column]] = True
            first = going = batch.ahead(chosen, 1) & batch.ahead(batch.loss_mask, 2)
            lengths = torch.zeros_like(batch.input_ids)
            for depth in range(1, num_depths):
                going = going & batch.ahead(batch.loss_mask, depth + 2)
                lengths += going
            supervision = self.supervise_chains(model.config, Objective(), batch, (first, lengths))
            order, tokens = supervision.order, _tokens(batch, supervision)
            labels, said = model.draft_ids(tokens)
            begin_R = supervision.anchors.flatten()[order.rows] + 1
            yield Drafted(
                rows=_rows(model, batch, supervision, labels, said.float()),
                head=head_of(model, whole=True),
                tokens=tokens,
                labels=labels,
                known=said,
                places=(order.batch_rows * length + begin_R) * num_depths + supervision.depths.flatten()[order.rows],
                targets=order.target_batch_rows * length + order.target_positions,
            )

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return loss and acceptance per depth, the accepted length to expect (bonus token included), and the coverage.

        Chains are sampled, fewer of the long ones, so the chance that a depth is reached is the mean over those that
        are as long, and the accepted length the sum of these chances.
        """
        found: dict[str, float] = {}
        for name in (*TERMS, "accept", "correct"):
            totals = sums.get(name, ())
            found |= {f"{name}@{depth}": ratio(total, sums["supervised"][depth]) for depth, total in enumerate(totals)}
        found["coverage"] = ratio(sums["known"], sums["supervised"].sum())
        for name, reached in (("tau", "reached"), ("tau_greedy", "reached_greedy")):
            if reached in sums:
                chances = [ratio(*pair) for pair in zip(sums[reached], sums["chains"], strict=True)]
                found[name] = 1.0 + sum(chances) if float(sums["blocks"]) else 0.0
        return found


def _rows(model: EagleDraft, batch: Batch, supervision: ChainSupervision, labels_R: Tensor, weights_R: Tensor) -> Rows:
    """Return the supervised entries, those of one target position side by side."""
    order = supervision.order
    return Rows(
        hidden=model.norm(entries(model, batch, supervision).flatten(0, 1)[order.rows]),
        labels=labels_R,
        weights=weights_R,
        target=batch.last_hidden[order.target_batch_rows, order.target_positions],
        target_index=order.target_index,
        on_host=order.on_host,
    )


def _accepted(
    supervision: ChainSupervision, num_depths: int, measured: RowLosses, counted_R: Tensor
) -> dict[str, Tensor]:
    """Return the sums of what is accepted, by depth.

    Args:
        supervision: of the entries.
        num_depths: K.
        measured: of the rows.
        counted_R: what acceptances are multiplied by: 0 where the predicted token is unknown and stands for all that
            the target says.
    """
    order, (rows, length) = supervision.order, supervision.firsts.shape
    length = supervision.anchors.shape[1] - length
    anchor_R, depth_R = (each.flatten()[order.rows] for each in (supervision.anchors, supervision.depths))
    place_R = (order.batch_rows * length + anchor_R) * num_depths + depth_R

    def by_chain(values_R: Tensor) -> Tensor:
        grid = values_R.new_zeros(rows * length * num_depths)
        grid[place_R] = values_R
        return grid.view(-1, num_depths)

    accept, correct = by_chain(measured.acceptance * counted_R), by_chain(measured.correct * counted_R)
    return {
        "accept": accept.sum(0),
        "correct": correct.sum(0),
        "chains": by_chain(torch.ones_like(counted_R)).cumprod(1).sum(0),
        "reached": accept.cumprod(1).sum(0),
        "reached_greedy": correct.cumprod(1).sum(0),
    }


def _tokens(batch: Batch, supervision: ChainSupervision) -> Tensor:
    """Return the token that each supervised entry predicts, `(R,)`; 0 beyond the sample."""
    order = supervision.order
    place_R = (supervision.anchors + supervision.depths).flatten()[order.rows]
    return batch.ahead(batch.input_ids, 2)[order.batch_rows, place_R]

"""Eagle3 in training: S test-time steps, each fed with the output of the one before. arXiv 2503.01840.

Position i at step s has the embedding of token i + 1 + s, rope position i + s, and predicts token i + 2 + s, whose
target distribution comes from the target's state at i + 1 + s.

Legend: B rows of samples, S steps, T positions, R supervised rows, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.algorithms.base import LossResult
from deepspec.algorithms.masks import steps_mask
from deepspec.algorithms.rows import order_by_target, ratio, scattered
from deepspec.formats.draft_shape import DraftConfig
from deepspec.formats.recipe import Objective
from deepspec.formats.records import Batch
from deepspec.losses import Head, Rows, Terms, chunked_loss
from deepspec.models.attention import KeyValue
from deepspec.models.draft import EagleDraft


@dataclass(frozen=True, kw_only=True, slots=True)
class EagleSupervision:
    """What is supervised at each step."""

    supervised: Tensor
    """`(B, S, T)` bool."""
    step_weights: Tensor
    """`(S,)` decay^s."""
    denominators: dict[str, Tensor]
    """`steps`: `(S,)` supervised positions of each step; by the public convention, all positions."""


class Eagle3:
    """Eagle3: one block, soft cross-entropy with the target's distribution at every step."""

    def supervise(
        self, config: DraftConfig, objective: Objective, batch: Batch, keys: Sequence[int]
    ) -> EagleSupervision:
        """Return what is supervised; nothing is drawn, so the keys are not read."""
        del config, keys
        public = objective.mask_alignment == "deepspec"
        first_BT = _feature_mask(batch) if public else batch.ahead(batch.loss_mask, 2)
        steps = torch.arange(objective.ttt_length, device=first_BT.device)
        supervised = torch.stack([batch.ahead(first_BT, step) for step in range(objective.ttt_length)], dim=1)
        counts = _positions(batch).expand_as(steps) if public else supervised.sum((0, 2))
        return EagleSupervision(
            supervised=supervised,
            step_weights=objective.step_decay ** steps.float(),
            denominators={"steps": counts.float()},
        )

    def loss(
        self,
        model: EagleDraft,
        batch: Batch,
        supervision: EagleSupervision,
        denominators: Mapping[str, Tensor],
        *,
        measure: bool = True,
    ) -> LossResult:
        """Return the loss of all steps, and sums for metrics; arguments as in `Algorithm.loss`."""
        del measure  # its distances are at hand anyway
        supervised = supervision.supervised
        outputs_BSTD = steps(model, batch, supervised.shape[1])
        order = order_by_target(supervised, _target_positions(supervised))
        step_R = order.rows // supervised.shape[2] % supervised.shape[1]
        known_R = model.draft_ids(_predicted(batch, supervised.shape[1]).flatten()[order.rows])[1].float()
        rows = Rows(
            hidden=model.norm(outputs_BSTD.flatten(0, 2)[order.rows]),
            labels=torch.zeros_like(order.rows),
            weights=known_R * (supervision.step_weights / denominators["steps"].clamp(min=1))[step_R],
            target=batch.last_hidden[order.target_batch_rows, order.target_positions],
            target_index=order.target_index,
        )
        head = Head(weight=model.lm_head.weight, softcap=model.config.logit_softcap)
        loss, measured = chunked_loss(rows, head, Terms(soft_cross_entropy=1.0))
        accept_BST = scattered(supervised, order.rows, measured.acceptance * known_R)
        correct_BST = scattered(supervised, order.rows, measured.correct * known_R)
        soft_BST = scattered(supervised, order.rows, measured.soft_cross_entropy * known_R)
        chains = supervised[:, 0]
        return LossResult(
            loss=loss,
            sums={
                "loss": loss.detach(),
                "steps": supervision.denominators["steps"],
                "supervised": supervised.sum((0, 2)),
                "soft_cross_entropy": soft_BST.sum((0, 2)),
                "accept": accept_BST.sum((0, 2)),
                "correct": correct_BST.sum((0, 2)),
                "known": known_R.sum(),
                "blocks": chains.sum(),
                "tau": (chains * (1 + accept_BST.cumprod(1).sum(1))).sum(),
                "tau_greedy": (chains * (1 + correct_BST.cumprod(1).sum(1))).sum(),
            },
        )

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return loss and acceptance per step, the accepted length to expect (bonus token included), and the coverage.

        That is the share of the supervised tokens that are in the draft's vocabulary.
        """
        found: dict[str, float] = {}
        for name, count in (("soft_cross_entropy", "steps"), ("accept", "supervised"), ("correct", "supervised")):
            found |= {f"{name}@{step}": ratio(total, sums[count][step]) for step, total in enumerate(sums[name])}
        found["coverage"] = ratio(sums["known"], sums["supervised"].sum())
        found["tau"] = ratio(sums["tau"], sums["blocks"])
        found["tau_greedy"] = ratio(sums["tau_greedy"], sums["blocks"])
        return found


def steps(model: EagleDraft, batch: Batch, num_steps: int) -> Tensor:
    """Return the block's output at every step, before the final norm: `(B, S, T, D)`."""
    flex = batch.hidden.device.type == "cuda"
    state: Tensor = model.fuse(batch.hidden)
    past: KeyValue | None = None
    outputs = []
    for step in range(num_steps):
        mask = steps_mask(batch.starts, batch.ends, step, flex=flex)
        state, past = model(batch.ahead(batch.input_ids, step + 1), state, batch.positions + step, past, mask)
        outputs.append(state)
    return torch.stack(outputs, dim=1)


def _feature_mask(batch: Batch) -> Tensor:
    """Return the public checkpoints' mask: that of the feature's own token, without the sample's last."""
    everywhere = torch.ones_like(batch.loss_mask)
    return batch.loss_mask & batch.ahead(everywhere, 1)


def _positions(batch: Batch) -> Tensor:
    """Return the positions of the samples as the public convention counts them: padded to the longest, a row each."""
    return (batch.ends - batch.starts).max() * len(batch.sample_ids)


def _predicted(batch: Batch, num_steps: int) -> Tensor:
    """Return the token that each position predicts at each step, `(B, S, T)`; 0 beyond the sample."""
    return torch.stack([batch.ahead(batch.input_ids, step + 2) for step in range(num_steps)], dim=1)


def _target_positions(supervised_BST: Tensor) -> Tensor:
    _, num_steps, length = supervised_BST.shape
    step = torch.arange(num_steps, device=supervised_BST.device)[:, None]
    return (torch.arange(length, device=supervised_BST.device) + 1 + step).expand_as(supervised_BST)

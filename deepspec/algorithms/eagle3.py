"""Eagle3 in training: S test-time steps, each fed with the output of the one before. arXiv 2503.01840.

Position i at step s has the embedding of token i + 1 + s, rope position i + s, and predicts token i + 2 + s, whose
target distribution comes from the target's state at i + 1 + s.

Legend: B rows of samples, S steps, T positions, R supervised rows, D hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deepspec.algorithms.base import Drafted, LossResult, PassWork, check_tokens, mean_pairs
from deepspec.algorithms.masks import form_for, steps_mask
from deepspec.algorithms.rows import Order, diverged, divergences, head_of, order_by_target, ratio, scattered
from deepspec.attention.attention import KeyValue, masks_of
from deepspec.formats.recipe import Objective
from deepspec.losses.chunked import chunked_loss
from deepspec.losses.rows import RowLosses, Rows
from deepspec.losses.terms import Terms
from deepspec.models.config import DraftConfig
from deepspec.models.draft import EagleDraft
from deepspec.records.batch import Batch, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class EagleSupervision:
    """What is supervised at each step."""

    supervised: Tensor
    """`(B, S, T)` bool."""
    step_weights: Tensor
    """`(S,)` decay^s."""
    true_labels: bool
    """Whether a position is trained on only where the draft knows the true token."""
    alone: bool = False
    """Whether a step sees nothing of the steps before it, as speculators trains MTP heads."""
    terms: Terms
    order: Order
    """Of the supervised positions."""
    work: PassWork
    denominators: dict[str, Tensor]
    """`steps`: `(S,)` supervised positions of each step; by the public convention, all positions."""


TERMS = ("soft_cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon")
"""Terms that metrics tell of each step, where they were measured."""


class Eagle3:
    """Eagle3: one block, soft cross-entropy with the target's distribution, or a divergence from it, at every step."""

    def supervise(
        self, config: DraftConfig, objective: Objective, batch: Tokens, keys: Sequence[int]
    ) -> EagleSupervision:
        """Return what is supervised; nothing is drawn, so the keys are not read.

        Raises:
            TrainingError: a sample contains a token beyond the vocabulary.
        """
        del keys
        check_tokens(config, batch)
        theirs = objective.convention == "speculators"
        public = objective.mask_alignment == "deepspec" and not theirs
        num_steps = objective.ttt_length
        supervised = _theirs(batch, num_steps) if theirs else supervised_steps(batch, num_steps, public=public)
        order = order_of_steps(supervised)
        counts = _positions(batch).expand(num_steps) if public else supervised.sum((0, 2))
        return EagleSupervision(
            supervised=supervised,
            step_weights=decayed(objective, batch.loss_mask.device),
            true_labels=not theirs,
            terms=terms_of(objective),
            order=order,
            work=work_of_steps(batch, order, num_steps, config),
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
        supervised, order, denominator = supervision.supervised, supervision.order, denominators["steps"]
        step_R = order.rows // supervised.shape[2] % supervised.shape[1]
        labels_R, said_R = model.draft_ids(_predicted(batch, supervised.shape[1]).flatten()[order.rows])
        known_R = said_R.float()
        trained_R = known_R if supervision.true_labels else torch.ones_like(known_R)
        weights_R = trained_R * (supervision.step_weights / denominator.clamp(min=1))[step_R]
        outputs = steps(model, batch, supervised.shape[1], alone=supervision.alone)
        rows = _rows(model, batch, order, outputs, labels_R, weights_R)
        head = head_of(model, whole=measure)
        loss, measured = chunked_loss(rows, head, supervision.terms)
        sums = {
            "loss": loss.detach(),
            "steps": supervision.denominators["steps"],
            "supervised": supervised.sum((0, 2)),
            "known": known_R.sum(),
        }
        for name, values in self.told(measured).items():
            sums[name] = scattered(supervised, order.rows, values * trained_R).sum((0, 2))
        if measure or not model.config.reduced_vocabulary:  # its distances are at hand anyway
            sums |= _accepted(supervised, order.rows, measured, 1.0 if head.whole is not None else trained_R)
        return LossResult(loss=loss, sums=sums)

    def told(self, measured: RowLosses) -> dict[str, Tensor]:
        """Return the terms that metrics tell of, by name and row."""
        return {"soft_cross_entropy": measured.soft_cross_entropy, **diverged(measured)}

    def slots(self, config: DraftConfig) -> int:
        """Return the steps that decoding takes in a round, however many were trained."""
        return config.block_size

    def drafted(self, model: EagleDraft, batch: Batch, begins: Tensor, most: int) -> Iterator[Drafted]:
        """Yield the steps of the rounds at chosen positions; arguments as in `Algorithm.drafted`.

        They are of one pass, since each step needs the whole of the one before. A round that begins at a token goes out
        from the position before it, whose input that token is.
        """
        del most
        num_steps, length = self.slots(model.config), batch.input_ids.shape[1]
        chained = batch.ahead(begins, 1)
        known = []
        for step in range(num_steps):
            chained = chained & batch.ahead(batch.loss_mask, step + 2)
            known.append(chained)
        supervised = torch.stack(known, dim=1)
        order = order_of_steps(supervised)
        tokens = _predicted(batch, num_steps).flatten()[order.rows]
        labels, said = model.draft_ids(tokens)
        step_R, begin_R = order.rows // length % num_steps, order.rows % length + 1
        yield Drafted(
            rows=_rows(model, batch, order, steps(model, batch, num_steps), labels, said.float()),
            head=head_of(model, whole=True),
            tokens=tokens,
            labels=labels,
            known=said,
            places=(order.batch_rows * length + begin_R) * num_steps + step_R,
            targets=order.target_batch_rows * length + order.target_positions,
        )

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return loss and acceptance per step, the accepted length to expect (bonus token included), and the coverage.

        That is the share of the supervised tokens that are in the draft's vocabulary.
        """
        found: dict[str, float] = {}
        for name, count in (*((term, "steps") for term in TERMS), ("accept", "supervised"), ("correct", "supervised")):
            totals = sums.get(name, ())
            found |= {f"{name}@{step}": ratio(total, sums[count][step]) for step, total in enumerate(totals)}
        found["coverage"] = ratio(sums["known"], sums["supervised"].sum())
        if "tau" in sums:
            found["tau"] = ratio(sums["tau"], sums["blocks"])
            found["tau_greedy"] = ratio(sums["tau_greedy"], sums["blocks"])
        return found


def _rows(
    model: EagleDraft, batch: Batch, order: Order, outputs_BSTD: Tensor, labels_R: Tensor, weights_R: Tensor
) -> Rows:
    """Return the supervised positions, those of one target position side by side."""
    return Rows(
        hidden=model.norm(outputs_BSTD.flatten(0, 2)[order.rows]),
        labels=labels_R,
        weights=weights_R,
        target=batch.last_hidden[order.target_batch_rows, order.target_positions],
        target_index=order.target_index,
        on_host=order.on_host,
    )


def _accepted(supervised: Tensor, rows: Tensor, measured: RowLosses, counted: Tensor | float) -> dict[str, Tensor]:
    """Return the sums of what is accepted.

    Args:
        supervised: `(B, S, T)`.
        rows: `(R,)` flat index into it.
        measured: of the rows.
        counted: what acceptances are multiplied by: 0 where the predicted token is unknown and stands for all that the
            target says.
    """
    accept_BST = scattered(supervised, rows, measured.acceptance * counted)
    correct_BST = scattered(supervised, rows, measured.correct * counted)
    chains = supervised[:, 0]
    return {
        "accept": accept_BST.sum((0, 2)),
        "correct": correct_BST.sum((0, 2)),
        "blocks": chains.sum(),
        "tau": (chains * (1 + accept_BST.cumprod(1).sum(1))).sum(),
        "tau_greedy": (chains * (1 + correct_BST.cumprod(1).sum(1))).sum(),
    }


def steps(model: EagleDraft, batch: Batch, num_steps: int, *, alone: bool = False) -> Tensor:
    """Return the block's output at every step, before the final norm: `(B, S, T, D)`.

    Args:
        model: the draft.
        batch: on its device.
        num_steps: S.
        alone: whether a step sees nothing of those before it, and stands where the first one does.
    """
    form, windows = form_for(batch.hidden.device), model.config.windows
    each = form == "dense" or any(windows)
    mask = None if each else steps_mask(batch.starts, batch.ends, 0, form)
    state: Tensor = model.fuse(batch.hidden)
    past: list[KeyValue] | None = None
    outputs = []
    for step in range(num_steps):
        before, ids = 0 if alone else step, batch.ahead(batch.input_ids, step + 1)
        seen = masks_of(windows, partial(steps_mask, batch.starts, batch.ends, before, form)) if each else mask
        output, keys_values = model(ids, state, batch.positions + before, past, seen)
        past = None if alone else keys_values
        state = model.handed(output)
        outputs.append(output)
    return torch.stack(outputs, dim=1)


def terms_of(objective: Objective) -> Terms:
    """Return the factors of the loss: soft cross-entropy alone where no divergence is chosen."""
    terms = Terms(soft_cross_entropy=objective.soft_cross_entropy, **divergences(objective))
    return terms if terms.divergent else Terms(soft_cross_entropy=1.0)


def decayed(objective: Objective, device: torch.device) -> Tensor:
    """Return decay^s of every step s, `(S,)`."""
    return objective.step_decay ** torch.arange(objective.ttt_length, device=device).float()


def supervised_steps(batch: Tokens, num_steps: int, *, public: bool = False) -> Tensor:
    """Return which positions are supervised at each step, `(B, S, T)`: by the predicted token, or the feature's."""
    first_BT = _feature_mask(batch) if public else batch.ahead(batch.loss_mask, 2)
    return torch.stack([batch.ahead(first_BT, step) for step in range(num_steps)], dim=1)


def _theirs(batch: Tokens, num_steps: int) -> Tensor:
    """Return the same by the convention of speculators: by the token that a step reads.

    It is the one before the predicted token, so that what follows the last supervised one is predicted, too.
    """
    return torch.stack([batch.ahead(batch.loss_mask, step + 1) for step in range(num_steps)], dim=1)


def work_of_steps(batch: Tokens, order: Order, num_steps: int, config: DraftConfig) -> PassWork:
    """Return the work of all steps: each sees its sample causally, and one entry of each step after the first."""
    real = batch.starts < batch.ends
    context, places = int(real.sum()), (batch.positions + 1)[real]
    pairs = sum(mean_pairs(places + step, config.windows) for step in range(num_steps))
    return PassWork(
        context=context,
        slots=context * num_steps,
        pairs=pairs,
        rows=len(order.rows),
        targets=len(order.target_positions),
    )


def _feature_mask(batch: Tokens) -> Tensor:
    """Return the public checkpoints' mask: that of the feature's own token, without the sample's last."""
    everywhere = torch.ones_like(batch.loss_mask)
    return batch.loss_mask & batch.ahead(everywhere, 1)


def _positions(batch: Tokens) -> Tensor:
    """Return the positions of the samples as the public convention counts them: padded to the longest, a row each."""
    return (batch.ends - batch.starts).max() * len(batch.sample_ids)


def _predicted(batch: Batch, num_steps: int) -> Tensor:
    """Return the token that each position predicts at each step, `(B, S, T)`; 0 beyond the sample."""
    return torch.stack([batch.ahead(batch.input_ids, step + 2) for step in range(num_steps)], dim=1)


def order_of_steps(supervised_BST: Tensor) -> Order:
    """Return the order of supervised positions, `(B, S, T)` bool."""
    return order_by_target(supervised_BST, _target_positions(supervised_BST))


def _target_positions(supervised_BST: Tensor) -> Tensor:
    _, num_steps, length = supervised_BST.shape
    step = torch.arange(num_steps, device=supervised_BST.device)[:, None]
    return (torch.arange(length, device=supervised_BST.device) + 1 + step).expand_as(supervised_BST)

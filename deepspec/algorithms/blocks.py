"""DSpark and DFlash in training: blocks of K slots behind random anchors. arXiv 2607.05147, 2602.06036.

They differ in the factors of the loss and, in the model, in their parts: a Markov head and a confidence head, or a
convolution over slots and a selector (DFlash 2, selector.py). What a slot is: slots.py.

Legend: B rows of samples, T positions, N blocks, K slots, R supervised slots, D hidden size, r Markov rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from deepspec.algorithms.anchors import draw_anchors, position_groups
from deepspec.algorithms.base import Drafted, LossResult, check_tokens
from deepspec.algorithms.rows import diverged, divergences, head_of, ratio, scattered
from deepspec.algorithms.selector import Choice, selected_logits, selector_loss
from deepspec.algorithms.slots import BlockSupervision, backbone, previous_tokens, real_blocks, supervise_blocks
from deepspec.algorithms.weights import dpace
from deepspec.formats.recipe import Objective
from deepspec.losses.chunked import chunked_loss
from deepspec.losses.rows import Head, RowLosses, Rows
from deepspec.losses.terms import Terms
from deepspec.models.config import DraftConfig
from deepspec.models.draft import BlockDraft
from deepspec.records.batch import Batch, Tokens

EPSILON = 1e-6
"""Added to denominators, as the public checkpoints were trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockAlgorithm:
    """DSpark, DFlash or DFlash 2, with the factors of its loss."""

    cross_entropy: float
    total_variation: float

    def supervise(
        self, config: DraftConfig, objective: Objective, batch: Tokens, keys: Sequence[int]
    ) -> BlockSupervision:
        """Draw anchors and return the blocks behind them.

        Raises:
            TrainingError: a sample contains the mask token, or a token beyond the vocabulary.
        """
        check_tokens(config, batch)
        anchors, keep = draw_anchors(batch, objective.num_anchors, keys)
        return self.supervise_blocks(config, objective, batch, anchors, keep)

    def supervise_blocks(
        self, config: DraftConfig, objective: Objective, batch: Tokens, anchors: Tensor, keep: Tensor
    ) -> BlockSupervision:
        """Return the blocks behind given anchors `(B, N)`, real where `keep`."""
        return supervise_blocks(config, objective, self._terms(objective), batch, anchors, keep)

    def loss(
        self,
        model: BlockDraft,
        batch: Batch,
        supervision: BlockSupervision,
        denominators: Mapping[str, Tensor],
        *,
        measure: bool = True,
    ) -> LossResult:
        """Return the loss of the blocks, and sums for metrics; arguments as in `Algorithm.loss`."""
        denominator = denominators["weight"] + EPSILON
        hidden_BQD = backbone(model, batch, supervision)
        head = head_of(model, whole=measure)
        rows, extra = slot_rows(model, batch, supervision, hidden_BQD)
        placed_R = supervision.slot_weights[extra.slots % model.config.block_size]
        shares_R = _shares(supervision, rows, head, extra, placed_R)
        rows = replace(rows, weights=shares_R * extra.trained / denominator)
        confident = model.confidence_head is not None and supervision.confidence > 0
        loss, measured = chunked_loss(
            rows, head, supervision.terms, measure=measure or confident, candidates=model.config.selector_top_k
        )
        counted = of_known(measured, extra.trained, exact=head.whole is not None)
        sums = {"known": extra.known.sum()}
        if confident:
            logits_R = model.confidence(rows.hidden, extra.embedded).float()
            kept_R = (1 - measured.total_variation / 2).clamp(0, 1)  # in training and at looks alike
            weights_R = placed_R * extra.trained / denominator
            term = binary_cross_entropy_with_logits(logits_R, kept_R, weights_R, reduction="sum")
            loss = loss + supervision.confidence * term
            sums["confidence"] = term.detach() * denominator
            sums["confidence_error"] = (logits_R.detach().sigmoid() - counted.acceptance).abs().sum()
        if model.candidate_selector is not None:
            choice = _choice(model, batch, supervision, rows, measured)
            own_R = dpace_of(supervision, extra, choice.cross_entropy) if supervision.dpace else shares_R
            term = (own_R * choice.cross_entropy).sum() / denominator
            loss = loss + supervision.selector * term
            sums |= _chosen(supervision, extra, choice) | {"selector": term.detach() * denominator}
        at_hand = confident or supervision.holds_target
        exact = measure or (at_hand and not model.config.reduced_vocabulary)
        sums |= sums_of(supervision, extra.slots, counted, shares_R, measure=exact)
        return LossResult(loss=loss, sums={"loss": loss.detach(), **sums}, held=measure or at_hand)

    def slots(self, config: DraftConfig) -> int:
        """Return how many tokens a block proposes."""
        return config.drafts

    def drafted(self, model: BlockDraft, batch: Batch, begins: Tensor, most: int) -> Iterator[Drafted]:
        """Yield the slots of the blocks at chosen anchors; arguments as in `Algorithm.drafted`."""
        for anchors, keep in position_groups(begins, most):
            supervision = self.supervise_blocks(model.config, Objective(), batch, anchors, keep)
            hidden_BQD = backbone(model, batch, supervision)
            rows, extra = slot_rows(model, batch, supervision, hidden_BQD)
            order, size, length = supervision.order, model.config.block_size, batch.input_ids.shape[1]
            labels_R, begin_R = supervision.labels.flatten()[extra.slots], anchors.flatten()[extra.slots // size]
            slot_R = extra.slots % size - supervision.first_slot
            tokens_R = batch.input_ids[order.batch_rows, labels_R]
            yield Drafted(
                rows=rows,
                head=head_of(model, whole=True),
                tokens=tokens_R,
                labels=model.draft_ids(tokens_R)[0],
                known=extra.known.bool(),
                places=(order.batch_rows * length + begin_R) * model.config.drafts + slot_R,
                targets=order.target_batch_rows * length + order.target_positions,
                choose=_chooser(model, batch, supervision, rows),
            )

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return loss terms, acceptance per drafted token, and the accepted length to expect (bonus token included)."""
        found = {"cross_entropy": ratio(sums["cross_entropy"], sums["weight"])}
        found["coverage"] = ratio(sums["known"], sums["supervised"].sum())
        if "confidence" in sums:
            found["confidence"] = ratio(sums["confidence"], sums["weight"])
            found["confidence_error"] = ratio(sums["confidence_error"], sums["supervised"].sum())
        if "selector" in sums:
            found["selector"] = ratio(sums["selector"], sums["weight"])
            found["selector_recall"] = ratio(sums["selector_recall"], sums["supervised"].sum())
            found["tau_selected"] = ratio(sums["tau_selected"], sums["blocks"])
        if "accept" in sums:
            for name in TERMS:
                if name in sums:
                    found[name] = ratio(sums[name], sums["weight"])
            for name in ("accept", "correct"):
                found |= {
                    f"{name}@{slot}": ratio(sums[name][slot], count) for slot, count in enumerate(sums["supervised"])
                }
            found["tau"] = ratio(sums["tau"], sums["blocks"])
            found["tau_greedy"] = ratio(sums["tau_greedy"], sums["blocks"])
        return found

    def _terms(self, objective: Objective) -> Terms:
        def factor(chosen: float | None, default: float) -> float:
            return default if chosen is None else chosen

        return Terms(
            cross_entropy=factor(objective.cross_entropy, self.cross_entropy),
            total_variation=factor(objective.total_variation, self.total_variation),
            soft_cross_entropy=objective.soft_cross_entropy,
            **divergences(objective),
        )


def _chooser(
    model: BlockDraft, batch: Batch, supervision: BlockSupervision, rows: Rows
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what a draft's selector makes of the logits `(M, V)` of chosen rows `(M,)`; None: it has none."""
    if model.candidate_selector is None:
        return None
    previous_R = previous_tokens(model.config, batch, supervision).flatten()[supervision.order.rows]

    def choose(logits_MV: Tensor, chosen_M: Tensor) -> Tensor:
        return selected_logits(model, logits_MV, rows.hidden[chosen_M], previous_R[chosen_M])

    return choose


def _choice(model: BlockDraft, batch: Batch, supervision: BlockSupervision, rows: Rows, measured: RowLosses) -> Choice:
    previous_R = previous_tokens(model.config, batch, supervision).flatten()[supervision.order.rows]
    return selector_loss(model, rows, measured, previous_R)


TERMS = ("total_variation", "soft_cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon")
"""Terms beside the cross-entropy that metrics tell, where they were measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """What is known of the supervised slots beside their rows."""

    embedded: Tensor | None
    slots: Tensor
    """`(R,)` flat index into `(B, N, K)`."""
    known: Tensor
    """`(R,)` 1 where the true token is in the draft's vocabulary, else 0."""
    trained: Tensor
    """`(R,)` 1 where the label is in it: other rows are not trained on."""


def slot_rows(model: BlockDraft, batch: Batch, supervision: BlockSupervision, hidden_BQD: Tensor) -> tuple[Rows, Extra]:
    """Return the supervised slots, those of one target position side by side, all of weight 1."""
    order = supervision.order
    hidden_RD = hidden_BQD.flatten(0, 1)[order.rows]
    features_Rr, embedded_Rr = _markov(model, batch, supervision, hidden_BQD)
    labels_R, known_R = model.draft_ids(batch.input_ids[order.batch_rows, supervision.labels.flatten()[order.rows]])
    true = supervision.true_labels
    rows = Rows(
        hidden=hidden_RD,
        labels=labels_R if true else None,
        weights=torch.ones_like(known_R, dtype=supervision.slot_weights.dtype),
        target=batch.last_hidden[order.target_batch_rows, order.target_positions],
        target_index=order.target_index,
        on_host=order.on_host,
        markov=features_Rr,
        markov_weight=_bias_of(model),
    )
    known = known_R.float()
    trained = known if true else torch.ones_like(known)
    return rows, Extra(embedded=embedded_Rr, slots=order.rows, known=known, trained=trained)


def _markov(
    model: BlockDraft, batch: Batch, supervision: BlockSupervision, hidden_BQD: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return what W2 multiplies and W1[previous token], `(R, r)` each, of the supervised slots."""
    head, refiner = model.markov_head, model.refiner_head
    if head is None and refiner is None:
        return None, None
    blocks = real_blocks(model.config, batch, supervision, hidden_BQD)
    if refiner is not None:
        return refiner.features(refiner.seen(blocks.hidden), blocks.previous).flatten(0, 1)[blocks.within], None
    if head is None:
        return None, None
    embedded_MKr = head.embed(blocks.previous)
    features_MKr = head.sequence(embedded_MKr, blocks.hidden)
    return features_MKr.flatten(0, 1)[blocks.within], embedded_MKr.flatten(0, 1)[blocks.within]


def _bias_of(model: BlockDraft) -> Tensor | None:
    """Return the matrix whose product is added to the head's, `(V, r)`; None: there is none."""
    if model.refiner_head is not None:
        return model.refiner_head.readout.weight
    return None if model.markov_head is None else model.markov_head.markov_w2.weight


def _shares(supervision: BlockSupervision, rows: Rows, head: Head, extra: Extra, placed_R: Tensor) -> Tensor:
    """Return how much each row weighs: by its place, or by D-PACE, which takes a look at the cross-entropies before."""
    if supervision.dpace is None:
        return placed_R
    with torch.no_grad():
        _, looked = chunked_loss(rows, replace(head, whole=None), Terms(cross_entropy=1.0), measure=False)
    return dpace_of(supervision, extra, looked.cross_entropy)


def dpace_of(supervision: BlockSupervision, extra: Extra, cross_entropy_R: Tensor) -> Tensor:
    """Return the D-PACE weights of rows by the cross-entropies of the same, `(R,)`."""
    grid = supervision.supervised
    trained = scattered(grid, extra.slots, extra.trained).bool()
    weights = dpace(scattered(grid, extra.slots, cross_entropy_R.detach()), trained, supervision.dpace or 1.0)
    return weights.flatten()[extra.slots]


def of_known(measured: RowLosses, known_R: Tensor, *, exact: bool) -> RowLosses:
    """Return what was measured, without what means nothing where the predicted token is unknown.

    Args:
        measured: of all rows.
        known_R: 1 where the token is known, else 0.
        exact: whether acceptance was counted against all that the target says; else the token that it did say stands
            for that, and where it is unknown, nothing is accepted.
    """
    measured = replace(measured, cross_entropy=measured.cross_entropy * known_R)
    if exact:
        return measured
    return replace(measured, acceptance=measured.acceptance * known_R, correct=measured.correct * known_R)


def _chosen(supervision: BlockSupervision, extra: Extra, choice: Choice) -> dict[str, Tensor]:
    """Return sums of what the selector chooses, the true tokens before each slot given."""
    right_BNK = scattered(supervision.supervised, extra.slots, choice.right * choice.found)
    real = supervision.supervised.any(-1)
    return {
        "selector_recall": choice.found.sum(),
        "tau_selected": (real * (1 + right_BNK[..., supervision.drafted].cumprod(-1).sum(-1))).sum(),
    }


def sums_of(
    supervision: BlockSupervision, slots_R: Tensor, measured: RowLosses, weights_R: Tensor, *, measure: bool
) -> dict[str, Tensor]:
    """Return sums for metrics of rows at flat slots of `(B, N, K)`; acceptance where it was measured."""
    supervised, drafted = supervision.supervised, supervision.drafted
    real = supervised.any(-1)
    sums = {
        "weight": supervision.denominators["weight"],
        "cross_entropy": (weights_R * measured.cross_entropy).sum(),
        "supervised": supervised[..., drafted].sum((0, 1)),
        "blocks": real.sum(),
    }
    if not measure:
        return sums
    accept_BNK = scattered(supervised, slots_R, measured.acceptance)[..., drafted]
    correct_BNK = scattered(supervised, slots_R, measured.correct)[..., drafted]
    return sums | {
        "total_variation": (weights_R * measured.total_variation).sum(),
        "soft_cross_entropy": (weights_R * measured.soft_cross_entropy).sum(),
        **{name: (weights_R * values).sum() for name, values in diverged(measured).items()},
        "accept": accept_BNK.sum((0, 1)),
        "correct": correct_BNK.sum((0, 1)),
        "tau": (real * (1 + accept_BNK.cumprod(-1).sum(-1))).sum(),
        "tau_greedy": (real * (1 + correct_BNK.cumprod(-1).sum(-1))).sum(),
    }

"""DSpark and DFlash in training: blocks of K slots behind random anchors. arXiv 2607.05147, 2602.06036.

Slot k of a block at anchor i has input token i (k = 0) or MASK, rope position i + k, and predicts token i + k + 1.

Legend: B rows of samples, T positions, N blocks, K slots, R supervised slots, D hidden size, r Markov rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from deepspec.algorithms.anchors import draw_anchors, position_groups
from deepspec.algorithms.base import Drafted, LossResult, Work, check_tokens
from deepspec.algorithms.masks import blocks_mask, form_for
from deepspec.algorithms.rows import Order, head_of, order_by_target, ratio, scattered
from deepspec.errors import TrainingError
from deepspec.formats.recipe import Objective
from deepspec.losses.chunked import RowLosses, Rows, Terms, chunked_loss
from deepspec.models.config import DraftConfig
from deepspec.models.draft import BlockDraft
from deepspec.records.batch import Batch, Tokens

EPSILON = 1e-6
"""Added to denominators, as the public checkpoints were trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSupervision:
    """The blocks of a batch."""

    starts: Tensor
    """`(B, N)` int64: where the sample of each anchor begins."""
    anchors: Tensor
    """`(B, N)` int64; 0 for dummy blocks."""
    keep: Tensor
    """`(B, N)` bool: False for dummy blocks."""
    real: Tensor
    """`(M,)` flat index of the blocks that are none."""
    labels: Tensor
    """`(B, N, K)` int64: positions of the predicted tokens, clamped into the row."""
    supervised: Tensor
    """`(B, N, K)` bool: a prefix of each block."""
    slot_weights: Tensor
    """`(K,)` exp(−k/γ)."""
    terms: Terms
    confidence: float
    """Factor of the confidence loss."""
    order: Order
    """Of the supervised slots."""
    work: Work
    denominators: dict[str, Tensor]
    """`weight`: the sum of the weights of all supervised slots."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockAlgorithm:
    """DSpark, or DFlash: they differ in the factors of the loss and, in the model, in their heads."""

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
        slots = torch.arange(config.block_size, device=anchors.device)
        labels = anchors[..., None] + 1 + slots
        inside = labels < batch.ends.gather(1, anchors)[..., None]
        labels = labels.clamp(max=batch.input_ids.shape[1] - 1)
        wanted = batch.loss_mask[:, None].expand(-1, anchors.shape[1], -1).gather(2, labels)
        supervised = (inside & wanted & keep[..., None]).cumprod(-1).bool()
        weights = torch.exp(-slots / objective.slot_decay) if objective.slot_decay else torch.ones_like(slots) * 1.0
        starts, order = batch.starts.gather(1, anchors), order_by_target(supervised, labels - 1)
        return BlockSupervision(
            starts=starts,
            anchors=anchors,
            keep=keep,
            real=keep.flatten().nonzero()[:, 0],
            labels=labels,
            supervised=supervised,
            slot_weights=weights,
            terms=self._terms(objective),
            confidence=objective.confidence,
            order=order,
            work=_work(batch, (anchors - starts)[keep], order, config.block_size),
            denominators={"weight": (supervised * weights).sum()},
        )

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
        denominator = denominators["weight"]
        hidden_BQD = backbone(model, batch, supervision)
        rows, extra = _rows(model, batch, supervision, hidden_BQD, denominator)
        head = head_of(model, whole=measure)
        confident = model.confidence_head is not None and supervision.confidence > 0
        loss, measured = chunked_loss(rows, head, supervision.terms, measure=measure or confident)
        counted = _of_known(measured, extra.known, exact=head.whole is not None)
        sums = {"known": extra.known.sum()}
        if confident:
            logits_R = model.confidence(rows.hidden, extra.embedded).float()
            kept_R = (1 - measured.total_variation / 2).clamp(0, 1)  # in training and at looks alike
            term = binary_cross_entropy_with_logits(logits_R, kept_R, rows.weights, reduction="sum")
            loss = loss + supervision.confidence * term
            sums["confidence"] = term.detach() * (denominator + EPSILON)
            sums["confidence_error"] = (logits_R.detach().sigmoid() - counted.acceptance).abs().sum()
        exact = measure or (confident and not model.config.reduced_vocabulary)
        sums |= _sums(supervision, extra.slots, counted, measure=exact)
        return LossResult(loss=loss, sums={"loss": loss.detach(), **sums})

    def slots(self, config: DraftConfig) -> int:
        """Return K."""
        return config.block_size

    def drafted(self, model: BlockDraft, batch: Batch, begins: Tensor, most: int) -> Iterator[Drafted]:
        """Yield the slots of the blocks at chosen anchors; arguments as in `Algorithm.drafted`."""
        for anchors, keep in position_groups(begins, most):
            supervision = self.supervise_blocks(model.config, Objective(), batch, anchors, keep)
            hidden_BQD = backbone(model, batch, supervision)
            rows, extra = _rows(model, batch, supervision, hidden_BQD, torch.ones((), device=anchors.device))
            order, size, length = supervision.order, model.config.block_size, batch.input_ids.shape[1]
            labels_R, begin_R = supervision.labels.flatten()[extra.slots], anchors.flatten()[extra.slots // size]
            yield Drafted(
                rows=rows,
                head=head_of(model, whole=True),
                tokens=batch.input_ids[order.batch_rows, labels_R],
                known=extra.known.bool(),
                places=(order.batch_rows * length + begin_R) * size + extra.slots % size,
                targets=order.target_batch_rows * length + order.target_positions,
            )

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return loss terms, acceptance per slot, and the accepted length to expect (bonus token included)."""
        found = {"cross_entropy": ratio(sums["cross_entropy"], sums["weight"])}
        found["coverage"] = ratio(sums["known"], sums["supervised"].sum())
        if "confidence" in sums:
            found["confidence"] = ratio(sums["confidence"], sums["weight"])
            found["confidence_error"] = ratio(sums["confidence_error"], sums["supervised"].sum())
        if "accept" in sums:
            found["total_variation"] = ratio(sums["total_variation"], sums["weight"])
            found["soft_cross_entropy"] = ratio(sums["soft_cross_entropy"], sums["weight"])
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
        )


def _work(batch: Tokens, seen: Tensor, order: Order, size: int) -> Work:
    """Return the work of blocks, of each of which the slots see so many positions of the context and each other."""
    return Work(
        context=int((batch.starts < batch.ends).sum()),
        slots=len(seen) * size,
        pairs=int(seen.sum()) * size + len(seen) * size**2,
        rows=len(order.rows),
        targets=len(order.target_positions),
    )


def block_inputs(config: DraftConfig, batch: Batch, supervision: BlockSupervision) -> tuple[Tensor, Tensor]:
    """Return the tokens and rope positions of all slots, `(B, N·K)` each; a dummy block is all MASK."""
    if config.mask_token_id is None:
        raise TrainingError("a block draft needs a mask token; its config has none")
    anchors, slots = supervision.anchors, torch.arange(config.block_size, device=supervision.anchors.device)
    ids = torch.full_like(supervision.labels, config.mask_token_id)
    first = batch.input_ids.gather(1, anchors)
    ids[..., 0] = first.where(supervision.keep, config.mask_token_id)
    return ids.flatten(1), ((anchors - supervision.starts)[..., None] + slots).flatten(1)


def backbone(model: BlockDraft, batch: Batch, supervision: BlockSupervision) -> Tensor:
    """Return the states of all slots after the final norm, `(B, N·K, D)`."""
    size, length = model.config.block_size, batch.input_ids.shape[1]
    ids, positions = block_inputs(model.config, batch, supervision)
    form = form_for(batch.hidden.device)
    mask = blocks_mask(supervision.starts, supervision.anchors, supervision.keep, size, length, form)
    context = model.context_keys_values(model.context(batch.hidden), batch.positions)
    states: Tensor = model(ids, positions, context, mask)
    return states


def previous_tokens(batch: Batch, supervision: BlockSupervision) -> Tensor:
    """Return the true token before each slot's prediction, `(B, N, K)`: the anchor's for slot 0."""
    slots = torch.arange(supervision.labels.shape[2], device=supervision.anchors.device)
    positions = (supervision.anchors[..., None] + slots).clamp(max=batch.input_ids.shape[1] - 1)
    return batch.input_ids[:, None].expand(-1, positions.shape[1], -1).gather(2, positions)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Extra:
    embedded: Tensor | None
    slots: Tensor
    """`(R,)` flat index into `(B, N, K)`."""
    known: Tensor
    """`(R,)` 1 where the predicted token is in the draft's vocabulary, else 0: such rows are not trained on."""


def _rows(
    model: BlockDraft, batch: Batch, supervision: BlockSupervision, hidden_BQD: Tensor, denominator: Tensor
) -> tuple[Rows, _Extra]:
    """Return the supervised slots, those of one target position side by side."""
    order = supervision.order
    hidden_RD = hidden_BQD.flatten(0, 1)[order.rows]
    features_Rr, embedded_Rr = _markov(model, batch, supervision, hidden_BQD, order.rows)
    labels_R, known_R = model.draft_ids(batch.input_ids[order.batch_rows, supervision.labels.flatten()[order.rows]])
    weights_R = supervision.slot_weights[order.rows % model.config.block_size] / (denominator + EPSILON)
    rows = Rows(
        hidden=hidden_RD,
        labels=labels_R,
        weights=weights_R * known_R,
        target=batch.last_hidden[order.target_batch_rows, order.target_positions],
        target_index=order.target_index,
        on_host=order.on_host,
        markov=features_Rr,
        markov_weight=None if model.markov_head is None else model.markov_head.markov_w2.weight,
    )
    return rows, _Extra(embedded=embedded_Rr, slots=order.rows, known=known_R.float())


def _markov(
    model: BlockDraft, batch: Batch, supervision: BlockSupervision, hidden_BQD: Tensor, rows_R: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return what W2 multiplies and W1[previous token], `(R, r)` each, of the supervised slots."""
    if model.markov_head is None:
        return None, None
    size = model.config.block_size
    blocks_NKD = hidden_BQD.reshape(-1, size, hidden_BQD.shape[-1])
    embedded_MKr = model.markov_head.embed(previous_tokens(batch, supervision).flatten(0, 1)[supervision.real])
    features_MKr = model.markov_head.sequence(embedded_MKr, blocks_NKD[supervision.real])
    within = (supervision.keep.flatten().cumsum(0) - 1)[rows_R // size] * size + rows_R % size
    return features_MKr.flatten(0, 1)[within], embedded_MKr.flatten(0, 1)[within]


def _of_known(measured: RowLosses, known_R: Tensor, *, exact: bool) -> RowLosses:
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


def _sums(supervision: BlockSupervision, slots_R: Tensor, measured: RowLosses, *, measure: bool) -> dict[str, Tensor]:
    supervised = supervision.supervised
    weights_R = supervision.slot_weights[slots_R % supervised.shape[-1]]
    sums = {
        "weight": supervision.denominators["weight"],
        "cross_entropy": (weights_R * measured.cross_entropy).sum(),
        "supervised": supervised.sum((0, 1)),
    }
    if not measure:
        return sums
    real = supervised[..., 0]
    accept_BNK = scattered(supervised, slots_R, measured.acceptance)
    correct_BNK = scattered(supervised, slots_R, measured.correct)
    return sums | {
        "total_variation": (weights_R * measured.total_variation).sum(),
        "soft_cross_entropy": (weights_R * measured.soft_cross_entropy).sum(),
        "accept": accept_BNK.sum((0, 1)),
        "correct": correct_BNK.sum((0, 1)),
        "blocks": real.sum(),
        "tau": (real * (1 + accept_BNK.cumprod(-1).sum(-1))).sum(),
        "tau_greedy": (real * (1 + correct_BNK.cumprod(-1).sum(-1))).sum(),
    }

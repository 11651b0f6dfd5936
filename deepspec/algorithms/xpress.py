"""XPress in training: blocks whose logits a refiner corrects by the tokens before their slots.

Every supervised slot is read several times: with the true tokens before the slots; in passes with the refiner's own
guesses, the first pass with the likeliest tokens of the block's own logits, each later one with those that the pass
before made likeliest, as decoding a whole block at once goes on (nothing is differentiated through a guess); and as the
block's own logits say it. The loss is that of the first reading, the mean over the passes times `consistency`, and the
last times `base_anchor`.

Legend: B rows of samples, M real blocks, K slots, R supervised slots, G readings, D hidden size, r rank, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from deepspec.algorithms.base import LossResult
from deepspec.algorithms.blocks import EPSILON, BlockAlgorithm, Extra, dpace_of, of_known, slot_rows, sums_of
from deepspec.algorithms.rows import head_of, ratio, scattered
from deepspec.algorithms.slots import BlockSupervision, RealBlocks, backbone, real_blocks
from deepspec.losses.chunked import CHUNK_ROWS, CHUNK_ROWS_ON_CPU, chunked_loss
from deepspec.losses.rows import Head, RowLosses, Rows
from deepspec.losses.terms import Terms
from deepspec.models.draft import BlockDraft
from deepspec.models.heads import RefinerHead
from deepspec.models.products import product_of
from deepspec.models.whole_head import cap
from deepspec.records.batch import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class XPress(BlockAlgorithm):
    """XPress, with the factors of its loss."""

    def loss(
        self,
        model: BlockDraft,
        batch: Batch,
        supervision: BlockSupervision,
        denominators: Mapping[str, Tensor],
        *,
        measure: bool = True,
    ) -> LossResult:
        """Return the loss of all readings, and sums for metrics of the first; arguments as in `Algorithm.loss`."""
        denominator = denominators["weight"] + EPSILON
        hidden_BQD, head = backbone(model, batch, supervision), head_of(model, whole=measure)
        rows, extra = slot_rows(model, batch, supervision, hidden_BQD)
        rows = _read(model, rows, real_blocks(model.config, batch, supervision, hidden_BQD), supervision)
        factors_G = torch.stack([rows.weights.new_full((), factor) for factor in _factors(supervision)])
        shares_GR = _shares(
            supervision, replace(rows, weights=factors_G[:, None].expand(-1, len(extra.slots))), head, extra
        )
        rows = replace(rows, weights=factors_G[:, None] * shares_GR * extra.trained / denominator)
        loss, measured = chunked_loss(rows, head, supervision.terms, measure=measure)
        first = of_known(_reading(measured, 0), extra.trained, exact=head.whole is not None)
        exact = measure or (supervision.holds_target and not model.config.reduced_vocabulary)
        sums = sums_of(supervision, extra.slots, first, shares_GR[0], measure=exact)
        sums |= {"known": extra.known.sum(), **_of_guesses(supervision, measured, shares_GR * extra.trained)}
        if exact and supervision.base_anchor:
            base = of_known(_reading(measured, -1), extra.trained, exact=head.whole is not None)
            sums["tau_base"] = _tau(supervision, extra, base)
        return LossResult(loss=loss, sums={"loss": loss.detach(), **sums}, held=measure or supervision.holds_target)

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what blocks tell, with the true tokens given; of guesses and of the block's own logits beside it."""
        found = BlockAlgorithm.metrics(self, sums)
        for name, below in (("consistency", "weight"), ("base_anchor", "weight"), ("tau_base", "blocks")):
            if name in sums:
                found[name] = ratio(sums[name], sums[below])
        return found


def _passes(supervision: BlockSupervision) -> int:
    return supervision.consistency_passes if supervision.consistency else 0


def _factors(supervision: BlockSupervision) -> list[float]:
    """Return what each reading's loss is multiplied by, `(G,)`."""
    passes = _passes(supervision)
    base = [supervision.base_anchor] if supervision.base_anchor else []
    return [1.0, *[supervision.consistency / max(1, passes)] * passes, *base]


def _read(model: BlockDraft, rows: Rows, blocks: RealBlocks, supervision: BlockSupervision) -> Rows:
    """Return rows with what W multiplies in each reading that has a bias."""
    refiner = _refiner_of(model)
    seen_MKd = refiner.seen(blocks.hidden)
    given = guesses(model, blocks, _passes(supervision))
    features = [refiner.features(seen_MKd, each).flatten(0, 1)[blocks.within] for each in given]
    return rows if rows.markov is None else replace(rows, markov=torch.stack([rows.markov, *features]))


def _refiner_of(model: BlockDraft) -> RefinerHead:
    """Return a draft's refiner.

    Raises:
        RuntimeError: it has none.
    """
    if model.refiner_head is None:
        raise RuntimeError("this draft has no refiner; ask refiner_head before")
    return model.refiner_head


@torch.no_grad()
def guesses(model: BlockDraft, blocks: RealBlocks, passes: int) -> list[Tensor]:
    """Return the tokens before each slot in so many passes over whole blocks, `(M, K)` each.

    Args:
        model: has a refiner.
        blocks: their states, and the true tokens before their slots, of which those up to the anchor are kept.
        passes: with the block's own likeliest tokens first, then with those that the pass before made likeliest.
    """
    if not passes:
        return []
    found = [_guess(model, blocks.hidden[span], blocks.previous[span], passes) for span in _spans(blocks.hidden)]
    return list(torch.cat(found, dim=1)) if found else [blocks.previous] * passes


def _guess(model: BlockDraft, hidden_MKD: Tensor, previous_MK: Tensor, passes: int) -> Tensor:
    """Return the same of some blocks, `(passes, M, K)`."""
    refiner, first = _refiner_of(model), model.config.first_slot
    asked = slice(first, hidden_MKD.shape[1] - 1)  # what the last slot says comes before no other
    seen_MKd, states_ND = refiner.seen(hidden_MKD), hidden_MKD[:, asked].flatten(0, 1)
    own_NV = states_ND.new_empty(len(states_ND), model.config.draft_vocab_size, dtype=torch.float32)
    product_of(model.lm_head.weight, model.lm_head.bias).forward(states_ND, own_NV)
    cap(own_NV, model.config.logit_softcap)
    readout, logits_NV, found = product_of(refiner.readout.weight), own_NV, list[Tensor]()
    for number in range(passes):
        guess_Mk = model.target_ids(logits_NV.argmax(-1)).view(len(hidden_MKD), -1)
        found.append(torch.cat((previous_MK[:, : first + 1], guess_Mk), dim=1))
        if number + 1 < passes:
            logits_NV = own_NV.clone()
            readout.forward(refiner.features(seen_MKd, found[-1])[:, asked].flatten(0, 1), logits_NV, add=True)
    return torch.stack(found)


def _spans(hidden_MKD: Tensor) -> Iterator[slice]:
    """Yield some blocks at a time."""
    rows = CHUNK_ROWS_ON_CPU if hidden_MKD.device.type == "cpu" else CHUNK_ROWS
    step = max(1, rows // hidden_MKD.shape[1])
    return (slice(start, start + step) for start in range(0, len(hidden_MKD), step))


def _shares(supervision: BlockSupervision, rows: Rows, head: Head, extra: Extra) -> Tensor:
    """Return how much each row weighs in each reading, `(G, R)`: by its place, or by D-PACE, each reading's own."""
    placed_R = supervision.slot_weights[extra.slots % supervision.slot_weights.shape[0]]
    if supervision.dpace is None:
        return placed_R.expand_as(rows.weights)
    with torch.no_grad():
        _, looked = chunked_loss(rows, replace(head, whole=None), Terms(cross_entropy=1.0), measure=False)
    return torch.stack([dpace_of(supervision, extra, each) for each in looked.cross_entropy])


def _reading(measured: RowLosses, number: int) -> RowLosses:
    """Return what was measured of one reading."""
    values = {each.name: getattr(measured, each.name) for each in fields(measured)}
    return replace(
        measured,
        **{
            name: value[number]
            for name, value in values.items()
            if value is not None and name not in ("labels", "candidates")
        },
    )


def _of_guesses(supervision: BlockSupervision, measured: RowLosses, shares_GR: Tensor) -> dict[str, Tensor]:
    """Return sums of the losses of passes, their mean, and of the block's own logits."""
    each_GR = measured.loss(supervision.terms) * shares_GR
    passes = _passes(supervision)
    sums = {"consistency": each_GR[1 : 1 + passes].sum() / passes} if passes else {}
    return sums | ({"base_anchor": each_GR[-1].sum()} if supervision.base_anchor else {})


def _tau(supervision: BlockSupervision, extra: Extra, measured: RowLosses) -> Tensor:
    """Return the sum of the accepted lengths to expect of blocks."""
    accept_BNK = scattered(supervision.supervised, extra.slots, measured.acceptance)[..., supervision.drafted]
    return (supervision.supervised.any(-1) * (1 + accept_BNK.cumprod(-1).sum(-1))).sum()

"""Drafts of blocks against golden numbers of speculators: forward, masks, loss, gradients, proposals."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.algorithms.base import Algorithm
from deepspec.algorithms.blocks import BlockAlgorithm, slot_rows
from deepspec.algorithms.masks import Blocks, blocks_mask
from deepspec.algorithms.rows import head_of
from deepspec.algorithms.selector import selector_loss
from deepspec.algorithms.slots import BlockSupervision, RealBlocks, backbone, block_inputs, previous_tokens, real_blocks
from deepspec.algorithms.xpress import guesses
from deepspec.losses.chunked import chunked_loss
from deepspec.models.draft import BlockDraft, Draft
from deepspec.proposers.propose import BlockProposer, BlockRows, Correction
from deepspec.records.batch import Batch
from tests.given import golden2
from tests.given.drafts.kinds import block_draft, of_blocks
from tests.given.drafts.masks import dense, use_form
from tests.given.golden_training import GRADIENT
from tests.given.some import some
from tests.parity import theirs
from tests.parity.test_training import LOGITS, LOSS

FILES = ("draft/config.json", "batch.safetensors", "expected.json", "expected.safetensors")
CASES = golden2.cases("dflash", "dflash2", "dspark", "xpress", wanted=FILES)


def setting(case: Path) -> tuple[BlockAlgorithm, BlockDraft, Batch, BlockSupervision]:
    """Return algorithm, draft, batch and supervision of a case."""
    told, tensors = golden2.expected(case)["call_args"], golden2.tensors(case, "batch.safetensors")
    model, batch = block_draft(theirs.read_draft(case)), theirs.read_batch(case)
    refined = {
        ours: told[theirs]
        for ours, theirs in (
            ("consistency", "consistency_weight"), ("consistency_passes", "consistency_passes"),
            ("base_anchor", "base_anchor_weight"),
        ) if theirs in told
    }  # fmt: skip
    objective = theirs.objective_of(
        case,
        confidence=told.get("confidence_head_alpha", 0.0),
        selector=told.get("selector_loss_alpha", 1.0),
        **refined,
    )
    algorithm = of_blocks(model.config.algorithm)
    anchors, keep = tensors["anchor_positions"][None], tensors["anchor_valid"].bool()[None]
    return algorithm, model, batch, algorithm.supervise_blocks(model.config, objective, batch, anchors, keep)


def real_only(supervision: BlockSupervision, values: Tensor) -> Tensor:
    """Return the golden values of blocks that are no dummies."""
    return values[supervision.keep[0]]


@pytest.mark.parametrize("case", CASES)
def test_masks_and_what_is_supervised(case: Path) -> None:
    _, model, batch, supervision = setting(case)
    wanted = golden2.tensors(case, "expected.safetensors")
    assert torch.equal(supervision.supervised[0], wanted["aligned_loss_mask"].bool())
    _, positions = block_inputs(model.config, batch, supervision)
    assert positions.numel() == wanted["block_indices"].numel()
    size, length = model.config.block_size, batch.input_ids.shape[1]
    form, near = model.config.window_form, model.config.window
    blocks = Blocks(supervision.starts, supervision.anchors, supervision.keep, size, form)
    real = supervision.keep[0].repeat_interleave(size)
    assert torch.equal(dense(blocks_mask(blocks, length))[0, 0][real], wanted["mask_full"][real].bool())
    assert ("mask_sliding" in wanted) == (near is not None)
    if near is not None:
        sliding = blocks_mask(blocks, length, window=near)
        assert torch.equal(dense(sliding)[0, 0][real], wanted["mask_sliding"][real].bool())


@pytest.mark.parametrize("case", CASES)
def test_states_and_logits(case: Path) -> None:
    _, model, batch, supervision = setting(case)
    wanted = golden2.tensors(case, "expected.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(model.context(batch.hidden)[0], wanted["context"], **LOGITS)
        hidden = backbone(model, batch, supervision)[0].unflatten(0, (-1, model.config.block_size))
        hidden = hidden[supervision.keep[0]]
        torch.testing.assert_close(hidden, real_only(supervision, wanted["backbone_hidden"]), **LOGITS)
        logits = model.head(hidden)
        torch.testing.assert_close(logits, real_only(supervision, wanted["unary_logits"]), **LOGITS)
        previous = previous_tokens(model.config, batch, supervision)[supervision.keep]
        if "predecessor_ids" in wanted:
            assert torch.equal(previous, real_only(supervision, wanted["predecessor_ids"]))
        if "final_logits" in wanted:
            embedded = some(model.markov_head).embed(previous)
            logits = logits + some(model.markov_head).markov_w2(some(model.markov_head).sequence(embedded, hidden))
            torch.testing.assert_close(logits, real_only(supervision, wanted["final_logits"]), **LOGITS)
            told = real_only(supervision, wanted["confidence_logits"])
            torch.testing.assert_close(model.confidence(hidden, embedded), told, **LOGITS)
        if "refined_tf_logits" in wanted:
            head = some(model.refiner_head)
            refined = logits + head.readout(head.features(head.seen(hidden), previous))
            torch.testing.assert_close(refined, real_only(supervision, wanted["refined_tf_logits"]), **LOGITS)


@pytest.mark.parametrize("case", golden2.cases("xpress", wanted=FILES))
def test_what_a_refiner_says_in_each_pass_over_its_own_guesses(case: Path) -> None:
    _, model, batch, supervision = setting(case)
    wanted = real_only(supervision, golden2.tensors(case, "expected.safetensors")["round_argmax"].transpose(0, 1))
    states = backbone(model, batch, supervision)
    blocks = real_blocks(model.config, batch, supervision, states)
    passes, first = wanted.shape[1], model.config.first_slot
    for number, given in enumerate(guesses(model, blocks, passes + 1)[1:]):
        assert torch.equal(given[:, first + 1 :], wanted[:, number, first:-1])


@pytest.fixture(params=["dense", "split"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks as a CPU likes them, and as a GPU does."""
    use_form(monkeypatch, request.param)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", CASES)
def test_loss_and_metrics(case: Path) -> None:
    algorithm, model, batch, supervision = setting(case)
    told = golden2.expected(case)
    result = algorithm.loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() == pytest.approx(told["loss"], rel=LOSS)
    found, metrics = algorithm.metrics(result.sums), told["metrics"]
    first = model.config.first_slot
    pairs = {
        "ce_loss": found["cross_entropy"], "tv_loss": found["total_variation"] / 2,
        "confidence_loss": found.get("confidence"), "confidence_abs_error": found.get("confidence_error"),
        "selector_loss": found.get("selector"), "unary_candidate_recall_at_k": found.get("selector_recall"),
        "accept_len": found["tau"], "eal": found.get("tau_selected", found["tau_greedy"]),
        "accept_rate": float(result.sums["accept"].sum() / result.sums["supervised"].sum()),
        "consistency_loss": found.get("consistency"), "base_anchor_loss": found.get("base_anchor"),
    }  # fmt: skip
    held = 0
    for name, value in pairs.items():
        if f"{name}_sum" in metrics:
            held += 1
            assert value == pytest.approx(metrics[f"{name}_sum"] / metrics[f"{name}_total"], rel=2e-5), name
    assert held
    if f"position_{first}_acc_sum" in metrics:
        for slot in range(model.config.drafts):
            right = metrics[f"position_{slot + first}_acc_sum"]
            assert result.sums["correct"][slot].item() == right


@pytest.mark.parametrize("case", golden2.cases("dflash2", wanted=FILES))
def test_candidates_and_what_the_selector_makes_of_them(case: Path) -> None:
    _, model, batch, supervision = setting(case)
    wanted = golden2.tensors(case, "expected.safetensors")
    rows, extra = slot_rows(model, batch, supervision, backbone(model, batch, supervision))
    _, measured = chunked_loss(
        rows, head_of(model, whole=False), supervision.terms, candidates=model.config.selector_top_k
    )
    previous = previous_tokens(model.config, batch, supervision).flatten()[supervision.order.rows]
    choice, slots = selector_loss(model, rows, measured, previous), extra.slots
    for ours, name in ((choice.candidates, "training_candidate_ids"), (choice.found, "contains_target")):
        assert torch.equal(ours.long(), wanted[name].flatten(0, 1)[slots].long())
    torch.testing.assert_close(choice.scores, wanted["candidate_logits"].flatten(0, 1)[slots], **LOGITS)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: Path) -> None:
    check_gradients(case, *setting(case))


def check_gradients(case: Path, algorithm: Algorithm, model: Draft, batch: Batch, supervision: Any) -> None:
    """Compare the gradient of every parameter by norm and by sum of absolute values, and in full where it is given."""
    check_parameters(case, algorithm.loss(model, batch, supervision, supervision.denominators).loss, model.trainable())


def check_parameters(case: Path, loss: Tensor, parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Do so with parameters as speculators names them."""
    told = golden2.expected(case)
    loss.backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters}
    assert grads.keys() == told["grad_norms"].keys()
    for name, norm in told["grad_norms"].items():
        assert grads[name].norm().item() == pytest.approx(norm, rel=GRADIENT, abs=1e-7), name
        assert grads[name].abs().sum().item() == pytest.approx(told["grad_abs_sums"][name], rel=2e-4, abs=1e-6), name
    total = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
    assert total == pytest.approx(told["grad_norm_total"], rel=GRADIENT)
    for name, wanted in golden2.tensors(case, "grads.safetensors").items():
        torch.testing.assert_close(grads[name], wanted, atol=1e-5 * float(wanted.abs().max() + 1), rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_greedy_proposals(case: Path) -> None:
    model, batch = block_draft(theirs.read_draft(case)).eval(), theirs.read_batch(case)
    wanted = golden2.tensors(case, "expected.safetensors")
    with torch.no_grad():
        for number, anchor in enumerate(wanted["proposal.anchor_positions"].tolist()):
            start = int(batch.starts[0, anchor])
            rows = BlockProposer(model).rows(1, batch.input_ids.shape[1] + model.config.block_size, torch.device("cpu"))
            if anchor > start:  # else a block without context
                seen, tokens = batch.hidden[:, start:anchor], batch.input_ids[:, start : anchor + 1]
                rows.commit(seen, tokens, torch.tensor([anchor - start]))
            proposal = rows.propose(batch.input_ids[:, anchor], 0.0, None)
            assert torch.equal(proposal.tokens[0], wanted["proposal.tokens"][number])
            if "proposal.tokens_per_pass" in wanted:
                check_passes(model, rows, batch.input_ids[:, anchor], wanted, number)
            if "proposal.confidence_logits" in wanted:
                told = wanted["proposal.confidence_logits"][number]
                torch.testing.assert_close(some(proposal.confidence)[0], told, **LOGITS)
            if "proposal.scores" in wanted:
                check_scores(model, rows, batch.input_ids[:, anchor], wanted, number)


def check_passes(
    model: BlockDraft, rows: BlockRows, current: Tensor, wanted: Mapping[str, Tensor], number: int
) -> None:
    """Compare the tokens after each pass over the whole block, which come to those of one slot after another."""
    told, states, before = wanted["proposal.tokens_per_pass"][:, number], rows.states(current), rows.before(current)
    torch.testing.assert_close(states[0], wanted["proposal.hidden"][number], **LOGITS)
    assert before.item() == wanted["proposal.previous_tokens"][number]
    given = torch.stack([before, *[current] * (states.shape[1] - 1)], dim=1)
    found = guesses(model, RealBlocks(states, given, torch.arange(states.shape[1])), len(told) + 1)[1:]
    for done, tokens in zip(found, told, strict=True):
        assert torch.equal(done[0, model.config.first_slot + 1 :], tokens[:-1])


def check_scores(
    model: BlockDraft, rows: BlockRows, current: Tensor, wanted: Mapping[str, Tensor], number: int
) -> None:
    """Compare what the selector says of each slot's candidates along the greedy path."""
    first = model.config.first_slot
    states = rows.states(current)
    torch.testing.assert_close(states[0, first:], wanted["proposal.hidden"][number], **LOGITS)
    correction, logits = Correction(model, states), model.head(states)
    before = [*[current] * (first + 1), *wanted["proposal.tokens"][number, :-1, None]]
    for slot, previous in enumerate(before):
        scores, ids = correction(slot, logits[:, slot], previous)
        if slot >= first:
            assert torch.equal(some(ids)[0], wanted["proposal.candidate_ids"][number, slot - first])
            torch.testing.assert_close(scores[0], wanted["proposal.scores"][number, slot - first], **LOGITS)

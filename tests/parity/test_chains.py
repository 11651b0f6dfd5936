"""P-EAGLE against golden numbers of speculators: entries of all depths, loss, gradients, greedy proposals.

Their rows are shifted: row i of a document is our position i. Their drawn entries are replayed.
"""

from pathlib import Path

import pytest
import torch

from deepspec.algorithms.chains import ChainSupervision, entries, supervised_places
from deepspec.algorithms.peagle import PEagle
from deepspec.models.draft import EagleDraft
from deepspec.proposers.eagle import ParallelProposer
from deepspec.records.batch import Batch
from tests.given import golden2
from tests.given.drafts.kinds import step_draft
from tests.given.drafts.masks import use_form
from tests.parity import theirs
from tests.parity.test_slots import check_gradients
from tests.parity.test_training import LOGITS, LOSS

CASES = golden2.cases(
    "peagle", wanted=("draft/config.json", "batch.safetensors", "expected.json", "expected.safetensors")
)


def setting(case: Path) -> tuple[PEagle, EagleDraft, Batch, ChainSupervision]:
    """Return algorithm, draft, batch and supervision of a case."""
    batch, model = theirs.read_documents(case), step_draft(theirs.read_draft(case))
    objective, drawn = theirs.objective_of(case), golden2.tensors(case, "batch.safetensors")
    places, lengths = theirs.shifted_rows(batch), torch.zeros_like(batch.input_ids)
    for anchor, depth in zip(drawn["anchor_pos"].tolist(), drawn["depth"].tolist(), strict=True):
        if depth:
            lengths[0, places[anchor]] += 1
    chains = supervised_places(batch, objective), lengths
    return PEagle(), model, batch, PEagle().supervise_chains(model.config, objective, batch, chains)


def paired(case: Path, batch: Batch, supervision: ChainSupervision) -> tuple[list[int], list[int]]:
    """Return where each of their entries that is no padding lies among theirs, and among ours."""
    drawn, places = golden2.tensors(case, "batch.safetensors"), theirs.shifted_rows(batch)
    ours = {pair: place for place, pair in enumerate(zip(
        supervision.anchors[0].tolist(), supervision.depths[0].tolist(), strict=True,
    ))}  # fmt: skip
    real = [number for number, anchor in enumerate(drawn["anchor_pos"].tolist()) if anchor < len(places)]
    wanted = [(int(places[drawn["anchor_pos"][number]]), int(drawn["depth"][number])) for number in real]
    return real, [ours[pair] for pair in wanted]


@pytest.fixture(params=["dense", "split", "flex"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks as a CPU likes them, and as a GPU does."""
    use_form(monkeypatch, request.param)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", CASES)
def test_every_entry(case: Path) -> None:
    _, model, batch, supervision = setting(case)
    wanted = golden2.tensors(case, "expected.safetensors")
    real, ours = paired(case, batch, supervision)
    assert len(set(ours)) == len(batch.input_ids[0]) - len(batch.sample_ids) + int((supervision.depths > 0).sum())
    with torch.no_grad():
        output = entries(model, batch, supervision)[0, ours]
        torch.testing.assert_close(model.norm(output), wanted["postnorm_hidden"][real], **LOGITS)
        torch.testing.assert_close(model.logits(output), wanted["logits"][real], **LOGITS)
    assert supervision.supervised[0, ours].tolist() == wanted["sampled_loss_mask"][real].bool().tolist()


@pytest.fixture(params=["dense", "split"])
def with_gradients(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same; uncompiled, flex_attention has no backward pass on a CPU."""
    use_form(monkeypatch, request.param)


@pytest.mark.usefixtures("with_gradients")
@pytest.mark.parametrize("case", CASES)
def test_loss_of_all_depths(case: Path) -> None:
    algorithm, model, batch, supervision = setting(case)
    told, metrics = golden2.expected(case), golden2.expected(case)["metrics"]
    result = algorithm.loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() == pytest.approx(told["loss"], rel=LOSS)
    for depth in range(model.config.drafts):
        assert result.sums["supervised"][depth].item() == metrics[f"position_{depth}_acc_total"]
        assert result.sums["correct"][depth].item() == metrics[f"position_{depth}_acc_sum"]


@pytest.mark.usefixtures("with_gradients")
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: Path) -> None:
    check_gradients(case, *setting(case))


@pytest.mark.parametrize("case", CASES)
def test_greedy_proposals(case: Path) -> None:
    model, batch = step_draft(theirs.read_draft(case)).eval(), theirs.read_documents(case)
    wanted, starts = golden2.tensors(case, "expected.safetensors"), [start for _, start, _ in batch.spans()]
    proposer = ParallelProposer(model)
    told = zip(wanted["proposal.document"].tolist(), wanted["proposal.context_length"].tolist(), strict=True)
    with torch.no_grad():
        for number, (document, context) in enumerate(told):
            start = starts[document]
            rows = proposer.rows(1, context + proposer.slots, torch.device("cpu"))
            tokens = batch.input_ids[:, start : start + context + 1]
            rows.commit(batch.hidden[:, start : start + context], tokens, torch.tensor([context]))
            torch.testing.assert_close(model.logits(rows.outputs())[0], wanted["proposal.logits"][number], **LOGITS)
            proposal = rows.propose(tokens[:, -1], 0.0, None)
            assert torch.equal(proposal.tokens[0], wanted["proposal.tokens"][number])

"""MTP heads against golden numbers of speculators: every step, its loss, gradients, greedy proposals.

Their rows are ours: nothing is shifted. They train a step without the entries of the steps before, and draft with them.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepspec.algorithms.eagle3 import EagleSupervision, steps
from deepspec.algorithms.mtp import Mtp
from deepspec.formats.recipe import Objective
from deepspec.forms import heads
from deepspec.models.draft import EagleDraft
from deepspec.proposers.eagle import EagleProposer
from deepspec.records.batch import Batch, Record, collate_rows, supervises
from tests.given import golden2
from tests.given.drafts.kinds import step_draft
from tests.given.drafts.masks import use_form
from tests.parity import theirs
from tests.parity.test_slots import check_parameters
from tests.parity.test_training import LOGITS, LOSS

CASES = golden2.cases("mtp", wanted=("draft/config.json", "batch.safetensors", "expected.json", "expected.safetensors"))


def read_documents(case: Path) -> Batch:
    """Return the documents of a case in one row; that their last states are no target's is nothing to the loss."""
    tensors, records = golden2.tensors(case, "batch.safetensors"), []
    for number in range(sum(name.endswith(".input_ids") for name in tensors)):
        states, mask = tensors[f"doc{number}.verifier_last_hidden_states"], tensors[f"doc{number}.loss_mask"].bool()
        records.append(Record(
            sample_id=str(number), input_ids=tensors[f"doc{number}.input_ids"], loss_mask=mask,
            hidden=states, last_hidden=states[supervises(mask)],
        ))  # fmt: skip
    return collate_rows([records])


def setting(case: Path) -> tuple[Mtp, EagleDraft, Batch, EagleSupervision]:
    """Return algorithm, draft, batch and supervision of a case."""
    told = golden2.expected(case)["call_args"]
    objective = Objective(convention="speculators", ttt_length=told["num_speculative_steps"], step_decay=told["beta"])
    batch, model = read_documents(case), step_draft(theirs.read_draft(case))
    return Mtp(), model, batch, Mtp().supervise(model.config, objective, batch, [0] * len(batch.sample_ids))


@pytest.mark.parametrize("case", CASES)
def test_states_and_logits_of_every_step(case: Path) -> None:
    _, model, batch, supervision = setting(case)
    wanted = golden2.tensors(case, "expected.safetensors")
    with torch.no_grad():
        outputs = steps(model, batch, supervision.supervised.shape[1], alone=True)[0]
        assert len(outputs) == len(wanted["logits"])
        for step, output in enumerate(outputs):
            rows = wanted["logits"].shape[1]
            inside = batch.ahead(torch.ones_like(batch.loss_mask), step + 1)[0, :rows]  # else another's token
            torch.testing.assert_close(model.norm(output)[:rows][inside], wanted["mtp_output"][step][inside], **LOGITS)
            torch.testing.assert_close(model.logits(output)[:rows][inside], wanted["logits"][step][inside], **LOGITS)


@pytest.fixture(params=["dense", "split"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks as a CPU likes them, and as a GPU does."""
    use_form(monkeypatch, request.param)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", CASES)
def test_loss_of_every_step(case: Path) -> None:
    algorithm, model, batch, supervision = setting(case)
    told = golden2.expected(case)
    assert supervision.step_weights.tolist() == pytest.approx(told["call_args"]["step_weights"])
    result = algorithm.loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() == pytest.approx(told["loss"], rel=LOSS)
    found = algorithm.metrics(result.sums)
    for step, weight in enumerate(supervision.step_weights.tolist()):
        assert weight * found[f"cross_entropy@{step}"] == pytest.approx(told["metrics"][f"loss_step_{step}"], rel=LOSS)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: Path) -> None:
    algorithm, model, batch, supervision = setting(case)
    loss = algorithm.loss(model, batch, supervision, supervision.denominators).loss
    check_parameters(case, loss, heads.to_speculators(dict(model.trainable())).items())


@pytest.mark.parametrize("case", CASES)
def test_greedy_proposals(case: Path) -> None:
    model, batch, wanted = (
        step_draft(theirs.read_draft(case)).eval(),
        read_documents(case),
        golden2.tensors(case, "expected.safetensors"),
    )
    starts, count = [start for _, start, _ in batch.spans()], wanted["proposal.tokens"].shape[1]
    told = zip(wanted["proposal.document"].tolist(), wanted["proposal.context_length"].tolist(), strict=True)
    with torch.no_grad():
        for number, (document, context) in enumerate(told):
            start = starts[document]
            rows = EagleProposer(model, count).rows(1, context + count + 1, torch.device("cpu"))
            tokens = batch.input_ids[:, start : start + context + 1]
            rows.commit(batch.hidden[:, start : start + context], tokens, torch.tensor([context]))
            proposal = rows.propose(tokens[:, -1], 0.0, None)
            assert torch.equal(proposal.tokens[0], wanted["proposal.tokens"][number])


@pytest.mark.parametrize("case", CASES)
def test_by_default_a_step_sees_the_steps_before_it_as_decoding_does(case: Path) -> None:
    _, model, batch, supervision = setting(case)
    with torch.no_grad():
        theirs_, ours = (steps(model, batch, supervision.supervised.shape[1], alone=alone) for alone in (True, False))
    torch.testing.assert_close(ours[:, 0], theirs_[:, 0])
    assert float((ours[:, 1] - theirs_[:, 1]).abs().max()) > 0.1
    assert not replace(supervision, alone=False).alone

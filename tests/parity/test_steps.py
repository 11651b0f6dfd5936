"""Eagle3 and EAGLE-3.1 against golden numbers of speculators: every step, its loss, every norm, gradients, proposals.

Their rows are shifted: row i of a document is our position i. Targets of the last states are compared through the loss.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepspec.algorithms.eagle3 import Eagle3, EagleSupervision, steps
from deepspec.models.config import EagleNorms
from deepspec.models.draft import EagleDraft
from deepspec.proposers.eagle import EagleProposer
from deepspec.records.batch import Batch
from tests.given import golden2
from tests.given.drafts.kinds import step_draft
from tests.given.drafts.masks import use_form
from tests.given.golden_training import GRADIENT
from tests.given.some import some
from tests.parity import theirs
from tests.parity.test_slots import check_gradients
from tests.parity.test_training import LOGITS, LOSS

CASES = golden2.cases(
    "eagle3", wanted=("draft/config.json", "batch.safetensors", "expected.json", "expected.safetensors")
)


def setting(case: Path) -> tuple[Eagle3, EagleDraft, Batch, EagleSupervision]:
    """Return algorithm, draft, batch and supervision of a case."""
    told = golden2.expected(case)["call_args"]
    batch, model = theirs.read_documents(case), step_draft(theirs.read_draft(case))
    objective = theirs.objective_of(case, ttt_length=told["ttt_steps"], step_decay=told["ttt_step_loss_decay"])
    return Eagle3(), model, batch, Eagle3().supervise(model.config, objective, batch, [0] * len(batch.sample_ids))


@pytest.mark.parametrize("case", CASES)
def test_states_and_logits_of_every_step(case: Path) -> None:
    _, model, batch, supervision = setting(case)
    wanted, rows = golden2.tensors(case, "expected.safetensors"), theirs.shifted_rows(batch)
    count = len(rows)
    with torch.no_grad():
        torch.testing.assert_close(model.fuse(batch.hidden)[0, rows], wanted["fc_output"][:count], **LOGITS)
        outputs = steps(model, batch, supervision.supervised.shape[1])[0]
        for step, output in enumerate(outputs):
            inside = batch.ahead(torch.ones_like(batch.loss_mask), step + 1)[0, rows]  # else the next document's token
            pairs = (
                (output, "prenorm_hidden"), (model.norm(output), "postnorm_hidden"), (model.logits(output), "logits"),
            )  # fmt: skip
            for ours, name in pairs:
                torch.testing.assert_close(ours[rows][inside], wanted[name][step, :count][inside], **LOGITS)


@pytest.fixture(params=["dense", "split"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks as a CPU likes them, and as a GPU does."""
    use_form(monkeypatch, request.param)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", CASES)
def test_loss_of_every_step(case: Path) -> None:
    algorithm, model, batch, supervision = setting(case)
    told = golden2.expected(case)
    result = algorithm.loss(model, batch, supervision, supervision.denominators)
    assert result.loss.item() == pytest.approx(told["loss"], rel=LOSS)
    found, metrics = algorithm.metrics(result.sums), told["metrics"]
    for step, weight in enumerate(supervision.step_weights.tolist()):
        assert weight * found[f"forward_kl@{step}"] == pytest.approx(metrics[f"loss_{step}_sum"], rel=LOSS)
        assert result.sums["supervised"][step].item() == metrics[f"full_acc_{step}_total"]
    assert result.sums["correct"][0].item() == metrics["full_acc_0_sum"]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: Path) -> None:
    check_gradients(case, *setting(case))


@pytest.mark.parametrize("case", CASES)
def test_every_combination_of_norms(case: Path) -> None:
    told, wanted = golden2.expected(case), golden2.tensors(case, "expected.safetensors")
    algorithm, model, batch, supervision = setting(case)
    added = {
        name.removeprefix("variant_norms."): value for name, value in wanted.items() if name.startswith("variant_norms")
    }
    for name, variant in (told.get("variants") or {}).items():
        other = EagleDraft(replace(model.config, norms=EagleNorms(**variant["flags"])))
        state = {**model.state_dict(), **added}
        other.load_state_dict({key: state[key] for key in other.state_dict()})
        result = algorithm.loss(other, batch, supervision, supervision.denominators)
        assert result.loss.item() == pytest.approx(variant["loss"], rel=LOSS), name
        result.loss.backward()
        norms = [some(parameter.grad).norm() for _, parameter in other.trainable()]
        assert torch.stack(norms).norm().item() == pytest.approx(variant["grad_norm_total"], rel=GRADIENT), name
        assert some(other.fc.weight.grad).norm().item() == pytest.approx(variant["grad_norm_fc"], rel=GRADIENT), name


@pytest.mark.parametrize("case", CASES)
def test_greedy_proposals(case: Path) -> None:
    model, batch, wanted = (
        step_draft(theirs.read_draft(case)).eval(),
        theirs.read_documents(case),
        golden2.tensors(case, "expected.safetensors"),
    )
    starts = [start for _, start, _ in batch.spans()]
    count = wanted["proposal.tokens"].shape[1]
    with torch.no_grad():
        for number, (document, context) in enumerate(
            zip(wanted["proposal.document"].tolist(), wanted["proposal.context_length"].tolist(), strict=True)
        ):
            start = starts[document]
            rows = EagleProposer(model, count).rows(1, context + count + 1, torch.device("cpu"))
            tokens = batch.input_ids[:, start : start + context + 1]
            rows.commit(batch.hidden[:, start : start + context], tokens, torch.tensor([context]))
            proposal = rows.propose(tokens[:, -1], 0.0, None)
            assert torch.equal(proposal.tokens[0], wanted["proposal.tokens"][number])

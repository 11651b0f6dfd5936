"""What reads values on the host (decoding, gate, parity, export, evaluation, benchmark) keeps every tensor on the
device that it is needed on, and gives there what it gives on the CPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from deepspec.artifacts import open_artifact
from deepspec.decoding.pair import Pair
from deepspec.evaluate.run import run as evaluate
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.export.run import run as export
from deepspec.export.spec import ExportSpec
from deepspec.formats.exports import read_index
from deepspec.formats.scores import SCORES, read_scores
from deepspec.parity.check import check_parity
from deepspec.publish import Out
from deepspec.rounds.decoded import Decoded, Prompt, Settings
from tests.elsewhere.device import DEVICE, there
from tests.given.drafts import pairs
from tests.given.heard import Heard
from tests.given.published.evaluated import Given, given

DRAFTS: dict[str, dict[str, Any]] = {
    "dflash": {"algorithm": "dflash"},
    "dspark": {"algorithm": "dspark", "markov_rank": 4, "confidence_head": True, "confidence_with_markov": True},
    "dspark-rnn": {"algorithm": "dspark", "markov_rank": 4, "markov_head": "rnn"},
    "dflash2": {"algorithm": "dflash2", "layout": "fill_in", **pairs.DFLASH2},
    "xpress": {"algorithm": "xpress", "layout": "fill_in", **pairs.XPRESS},
    "eagle3": {"algorithm": "eagle3"},
    "peagle": {"algorithm": "peagle"},
    "mtp": {"algorithm": "mtp"},
}


def decoded(pair: Pair, temperature: float) -> list[Decoded]:
    prompts = [Prompt(sample_id=str(n), ids=list(ids)) for n, ids in enumerate(pairs.prompts(5))]
    settings = Settings(max_new_tokens=12, temperature=temperature, seed=0)
    return sorted(pair.speculative(settings, 3).decode(prompts), key=lambda each: each.sample_id)


PAIRS = [(name, sliding, float((number + sliding) % 2)) for number, name in enumerate(DRAFTS) for sliding in (0, 1)]
"""Draft, whether the target's layers have windows, and temperature: any two of the three meet."""


@pytest.mark.parametrize(("name", "sliding", "temperature"), PAIRS)
def test_decoding_gives_the_same_tokens_elsewhere(name, sliding, temperature):
    target = pairs.target(sliding=bool(sliding))
    draft = pairs.draft(target, **DRAFTS[name])
    here = decoded(Pair(target=target, draft=draft, slots=3), temperature)
    with there():
        moved = replace(target, model=target.model.to(DEVICE))
        assert decoded(Pair(target=moved, draft=draft.to(DEVICE), slots=3), temperature) == here


@pytest.mark.parametrize("name", DRAFTS)
def test_all_forms_are_held_together_elsewhere(name):
    target = pairs.target()
    draft = pairs.draft(target, **DRAFTS[name])
    with there():
        moved = replace(target, model=target.model.to(DEVICE))
        text = torch.tensor(pairs.prompts(10)[-1])
        found = check_parity(moved, draft.to(DEVICE), text, forms={"same": draft})
    assert found.passed, found.rows()


def made(case: Given, kind: str) -> Out:
    return Out(case.store, kind, "e" * 32, {"draft": case.draft.ref}, case.placement.scratch)


@pytest.mark.parametrize("algorithm", ["dspark", "dflash", "eagle3"])
def test_forms_are_exported_and_pass_the_gate_elsewhere(tmp_path, algorithm):
    case = given(tmp_path, algorithm=algorithm)
    out = made(case, "exports")
    with there():
        placement = case.placement.model_copy(update={"device": str(DEVICE)})
        counts = export(ExportSpec(), {"draft": case.draft}, out, placement, Heard())
    exports = open_artifact(case.store, out.publish(ExportSpec(), 1, counts), tmp_path / "scratch")
    assert counts["parity"] is True, read_index(exports).parity


@pytest.mark.parametrize("algorithm", ["dspark", "eagle3"])
def test_an_evaluation_scores_the_same_elsewhere(tmp_path, algorithm):
    case = given(tmp_path, algorithm=algorithm)
    spec = EvaluateSpec(
        target=case.target, benchmarks=case.benchmarks, max_new_tokens=8, dtype="float32", calibration_samples=0,
        temperatures=(0.0,), lossless_samples=2,
    )  # fmt: skip
    here, elsewhere = made(case, "scores"), made(case, "moved")
    evaluate(spec, {"draft": case.draft}, here, case.placement, Heard())
    with there():
        placement = case.placement.model_copy(update={"device": str(DEVICE)})
        evaluate(spec, {"draft": case.draft}, elsewhere, placement, Heard())
    found, wanted = read_scores(elsewhere.file(SCORES)), read_scores(here.file(SCORES))
    assert found.overall == wanted.overall
    assert found.lossless is not None
    assert found.lossless.passed

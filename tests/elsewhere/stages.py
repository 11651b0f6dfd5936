"""What reads values on the host (decoding, gate, parity, export, evaluation, benchmark) keeps every tensor on the
device that it is needed on, and gives there what it gives on the CPU; so it does where half of a target lies there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import deepspec.decoding.pair as loading
from deepspec.artifacts import open_artifact
from deepspec.decoding.decode import Decoder
from deepspec.decoding.pair import Pair
from deepspec.decoding.target_rows import TargetRows
from deepspec.evaluate.run import run as evaluate
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.export.run import run as export
from deepspec.export.spec import ExportSpec
from deepspec.formats.exports import read_index
from deepspec.formats.scores import SCORES, read_scores
from deepspec.parity.check import check_parity
from deepspec.proposers.propose import NoProposer
from deepspec.publish import Out
from deepspec.rounds.decoded import Decoded, Prompt, Settings
from deepspec.target.load import Target, load_target
from deepspec.target.proof import prove
from tests.elsewhere.device import DEVICE, there
from tests.given.drafts import pairs
from tests.given.heard import Heard
from tests.given.published.evaluated import Given, given
from tests.given.targets import zoo
from tests.given.targets.spread import spread

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


def decoded(pair: Pair, temperature: float, *, plain: bool = False) -> list[Decoded]:
    prompts = [Prompt(sample_id=str(n), ids=list(ids)) for n, ids in enumerate(pairs.prompts(5))]
    settings = Settings(max_new_tokens=12, temperature=temperature, seed=0)
    decoder = pair.plain(settings, 3) if plain else pair.speculative(settings, 3)
    return sorted(decoder.decode(prompts), key=lambda each: each.sample_id)


PAIRS = [(name, sliding, float((number + sliding) % 2)) for number, name in enumerate(DRAFTS) for sliding in (0, 1)]
"""Draft, whether the target's layers have windows, and temperature: any two of the three meet."""


@pytest.mark.parametrize(("name", "sliding", "temperature"), PAIRS)
def test_decoding_gives_the_same_tokens_elsewhere(name: str, sliding: int, temperature: float) -> None:
    target = pairs.target(sliding=bool(sliding))
    draft = pairs.draft(target, **DRAFTS[name])
    here = decoded(Pair(target=target, draft=draft, slots=3), temperature)
    with there():
        moved = replace(target, model=target.model.to(DEVICE))
        assert decoded(Pair(target=moved, draft=draft.to(DEVICE), slots=3), temperature) == here


@pytest.mark.parametrize(
    ("name", "sliding", "temperature"),
    [("dspark", False, 0.0), ("dspark", True, 1.0), ("eagle3", True, 0.0), ("eagle3", False, 1.0)],
)
def test_a_spread_target_decodes_what_it_does_on_one_device(name: str, sliding: bool, temperature: float) -> None:
    """Without windows the head lies with the last block; with windows it is the embedding, and lies with the first."""
    target = pairs.target(sliding=sliding)
    draft = pairs.draft(target, **DRAFTS[name])
    pair = Pair(target=target, draft=draft, slots=3)
    here, alone = decoded(pair, temperature), decoded(pair, temperature, plain=True)
    with there():
        pair = Pair(target=spread(target, DEVICE), draft=draft.to(DEVICE), slots=3)
        assert target.devices == {DEVICE, torch.device("cpu")}
        assert decoded(pair, temperature) == here
        assert decoded(pair, temperature, plain=True) == alone
    if not temperature:
        assert [each.tokens for each in here] == [each.tokens for each in alone]


def rows_of(target: Target, oracle: pairs.Oracle | None = None) -> tuple[str, list[list[int]]]:
    """Return how a target reads, and its answers to four prompts in three rows: plain, or behind true proposals."""
    rows = TargetRows(target, ())
    prompts = [Prompt(sample_id=str(n), ids=list(range(n, 2 * n))) for n in (4, 9, 7, 5)]
    settings = Settings(max_new_tokens=8, stop=False)
    found = Decoder(rows, oracle or NoProposer(), settings, frozenset(), 3).decode(prompts)
    return rows.way, [list(each.tokens) for each in sorted(found, key=lambda each: int(each.sample_id))]


@pytest.mark.parametrize("model_type", ["mistral", "falcon_h1", "bloom", "xlstm"])
def test_a_spread_target_of_any_memory_is_read_in_the_same_way(model_type: str) -> None:
    """Keys and values; states beside them; what the model itself keeps, a row at a time; states of its own form."""
    model = zoo.build(model_type).requires_grad_(False)
    target = Target(folder=Path("tiny"), model=model, tokenizer=None, stop_ids=frozenset())
    here = rows_of(target)
    answers = {n + 1: [*range(n + 1, 2 * n), *tokens] for n, tokens in zip((4, 5, 7, 9), here[1], strict=True)}
    with there():
        prove(spread(target, DEVICE).model, target.reading, target.shape)
        assert rows_of(target) == here
        assert rows_of(target, pairs.Oracle(answers)) == here


def test_a_spread_target_starts_every_kernel_by_itself_and_that_is_said_once() -> None:
    target, said = pairs.target(), list[str]()
    with there():
        pair = Pair(target=spread(target, DEVICE), draft=pairs.draft(pairs.target(), **DRAFTS["dspark"]), slots=3)
        told = pair.telling(said.append)
        for _ in range(2):
            rows = TargetRows(told.target, (), told.say)
            rows.device = torch.device("cuda", 0)
            assert rows.passes == "growing"
    assert said == ["decoding starts every kernel by itself: the target lies on several devices"]


@pytest.mark.parametrize("name", DRAFTS)
def test_all_forms_are_held_together_elsewhere(name: str) -> None:
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
def test_forms_are_exported_and_pass_the_gate_elsewhere(tmp_path: Path, algorithm: str) -> None:
    case = given(tmp_path, algorithm=algorithm)
    out = made(case, "exports")
    with there():
        placement = case.placement.model_copy(update={"device": str(DEVICE)})
        counts = export(ExportSpec(), {"draft": case.draft}, out, placement, Heard())
    exports = open_artifact(case.store, out.publish(ExportSpec(), 1, counts), tmp_path / "scratch")
    assert counts["parity"] is True, read_index(exports).parity


@pytest.mark.parametrize(
    ("algorithm", "device"), [("dspark", str(DEVICE)), ("eagle3", str(DEVICE)), ("eagle3", "spread")]
)
def test_an_evaluation_scores_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, device: str
) -> None:
    case = given(tmp_path, algorithm=algorithm)
    spec = EvaluateSpec(
        target=case.target, benchmarks=case.benchmarks, max_new_tokens=8, dtype="float32", calibration_samples=0,
        temperatures=(0.0,), lossless_samples=2,
    )  # fmt: skip
    here, elsewhere = made(case, "scores"), made(case, "moved")
    evaluate(spec, {"draft": case.draft}, here, case.placement, Heard())
    if device == "spread":
        monkeypatch.setattr(loading, "load_target", lambda folder, dtype, _: spread(load_target(folder, dtype), DEVICE))
    with there():
        placement = case.placement.model_copy(update={"device": device})
        evaluate(spec, {"draft": case.draft}, elsewhere, placement, Heard())
    found, wanted = read_scores(elsewhere.file(SCORES)), read_scores(here.file(SCORES))
    assert found.overall == wanted.overall
    assert found.lossless is not None
    assert found.lossless.passed

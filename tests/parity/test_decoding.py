"""Decoding against the golden numbers under $DEEPSPEC_GOLDEN: every case folder found in `eval`, every run in it."""

import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepspec.decoding.decode import Decoder
from deepspec.decoding.measure import tally
from deepspec.decoding.propose import proposer_for
from deepspec.decoding.results import Decoded, Prompt, Settings
from deepspec.decoding.target_rows import TargetRows
from deepspec.evaluate.calibration import auroc, calibration, survival, traces
from deepspec.formats.draft import load_draft
from deepspec.target.load import Target, load_target

INFORMATIVE = ("bf16", "seeded")
"""Runs that depend on kernels, or on the order in which a global random generator was called."""

GOLDEN = Path(os.environ.get("DEEPSPEC_GOLDEN", "/nonexistent"))
RUNS = [
    path
    for path in sorted(GOLDEN.glob("eval/*/*.json"))
    if (path.parent / "draft").is_dir() and "samples" in json.loads(path.read_text())
    if not any(word in path.stem for word in INFORMATIVE)
]

if not RUNS:
    pytest.skip("DEEPSPEC_GOLDEN names no folder with golden eval cases", allow_module_level=True)


@cache
def target_of(draft: Path) -> Target:
    """Return the golden target with the draft's vocabulary, hidden size and kind of model."""
    keys = ("vocab_size", "hidden_size", "model_type")
    wanted = [json.loads((draft / "config.json").read_text()).get(key) for key in keys]
    for folder in sorted(GOLDEN.glob("targets/*")):
        config = json.loads((folder / "config.json").read_text())
        if [config.get(key) for key in keys] == wanted:
            return load_target(folder)
    pytest.fail(f"no golden target fits {draft}")


@cache
def decoded(run: Path, batch: int) -> list[Decoded]:
    """Decode a run's prompts as it was decoded."""
    expected = json.loads(run.read_text())
    target, draft = target_of(run.parent / "draft"), load_draft(run.parent / "draft")
    stops = frozenset(expected["samples"][0]["stop_token_ids"])
    proposer = proposer_for(draft, stop_ids=stops)
    settings = Settings(
        max_new_tokens=expected["args"]["max_new_tokens"] + 1,  # it goes on until its current token is past the limit
        temperature=expected["args"]["temperature"],
        confidence_threshold=expected["args"]["confidence_threshold"],
        threshold_mode="per_slot",
    )
    decoder = Decoder(TargetRows(target, proposer.layers), proposer, settings, stops, batch)
    prompts = [Prompt(sample_id=str(i), ids=sample["prompt_ids"]) for i, sample in enumerate(expected["samples"])]
    return sorted(decoder.decode(prompts), key=lambda sample: int(sample.sample_id))


def name(run: Path) -> str:
    return f"{run.parent.name}-{run.stem}"


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("run", RUNS, ids=name)
def test_rounds_are_those_of_the_public_evaluator(run: Path, batch: int):
    for ours, theirs in zip(decoded(run, batch), json.loads(run.read_text())["samples"], strict=True):
        assert [*theirs["prompt_ids"], *ours.tokens][: len(theirs["output_ids"])] == theirs["output_ids"]
        assert [each.proposed for each in ours.rounds] == theirs["proposal_lengths"]
        assert [each.accepted for each in ours.rounds] == theirs["accepted_draft_lengths"]
        assert [each.accepted + (not each.stopped) for each in ours.rounds] == theirs["acceptance_lengths"]
        assert [each.stopped for each in ours.rounds] == [each["term"] for each in theirs["rounds"]]
        for mine, golden in zip(ours.rounds, theirs["rounds"], strict=True):
            told = golden["confidence"] or ()  # of the slots that were not cut
            assert mine.confidence[: len(told)] == pytest.approx(told, abs=2e-4)


@pytest.mark.parametrize("run", RUNS, ids=name)
def test_metrics_counted_their_way_are_theirs(run: Path):
    expected = json.loads(run.read_text())
    summary, row = expected["metric_summary"], expected["metrics_row"]
    slots = len(summary["proposals_at_pos"])
    sums = tally(decoded(run, 8), slots, within_limit=False)
    assert sums.proposed.sum(0).tolist() == summary["proposals_at_pos"]
    assert sums.accepted.sum(0).tolist() == summary["accepted_at_pos"]
    assert sums.public.sum() == summary["acceptance_length_sum"]
    assert sums.rounds.sum() == summary["proposal_count"]
    ratios = {key: value[0] for key, value in sums.ratios(np.ones((1, len(sums.rounds)))).items()}
    assert ratios["tau_deepspec"] == pytest.approx(row["acceptance_length"])
    assert ratios["proposal_length"] == pytest.approx(row["draft_tokens_per_proposal"])
    theirs = [float(rate or 0) for rate in row["accept_rates_by_position"]]
    assert np.nan_to_num(ratios["cumulative"]).tolist() == pytest.approx(theirs)


@pytest.mark.parametrize("run", [run for run in RUNS if "confidence_row" in json.loads(run.read_text())], ids=name)
def test_calibration_is_theirs(run: Path):
    row: dict[str, Any] = json.loads(run.read_text())["confidence_row"]
    ours = {each.position - 1: each for each in calibration(decoded(run, 8)) if each.count}
    logits, proposed, accepted = traces(decoded(run, 8))
    chances = survival(logits)
    for golden in row["per_position"]:
        mine = ours[golden["position"]]
        assert mine.count == golden["total_weight"]
        assert mine.ece == pytest.approx(golden["ece"], abs=1e-4)
        assert mine.brier == pytest.approx(golden["brier"], abs=1e-4)
        assert (mine.predicted, mine.observed) == pytest.approx((golden["pred_mean"], golden["target_mean"]), abs=1e-4)
        if golden["auc"] is not None and not math.isnan(golden["auc"]):  # it ranks in a thousand bins, we exactly
            binned = np.floor(1000 * chances[proposed > mine.position - 1, mine.position - 1])
            happened = accepted[proposed > mine.position - 1] > mine.position - 1
            assert auroc(binned, happened.astype(float)) == pytest.approx(golden["auc"], abs=2e-3)
            assert mine.auroc == pytest.approx(golden["auc"], abs=0.05)


@pytest.mark.parametrize("run", [run for run in RUNS if run.stem == "greedy"], ids=name)
def test_greedy_output_is_the_targets_own(run: Path):
    for ours, theirs in zip(decoded(run, 8), json.loads(run.read_text())["samples"], strict=True):
        assert [*theirs["prompt_ids"], *ours.tokens][: len(theirs["output_ids"])] == theirs["target_greedy_ids"]

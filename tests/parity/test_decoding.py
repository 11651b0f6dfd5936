"""Decoding against the golden numbers under $DEEPSPEC_GOLDEN: every case folder found in `eval`, every run in it."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepspec.calibration.calibration import auroc, calibration, survival, traces
from deepspec.checkpoint.draft import load_draft
from deepspec.decoding.decode import Decoder
from deepspec.decoding.target_rows import TargetRows
from deepspec.proposers.propose import proposer_for
from deepspec.rounds.decoded import Decoded, Prompt, Round, Settings
from deepspec.rounds.measure import tally
from deepspec.target.load import Target, load_target
from tests.given.golden import MISSING, root, target


def runs() -> list[Path]:
    """Return the runs that must be met: at temperature 0 in fp32. Others depend on kernels or on a global generator."""
    found = root()
    drafts = [] if found is None else sorted(found.glob("eval/*/draft/config.json"))
    return [run for draft in drafts for run in sorted(draft.parents[1].glob("*.json")) if _is_reproducible(read(run))]


@cache
def read(run: Path) -> dict[str, Any]:
    """Return what a run's file tells."""
    told: dict[str, Any] = json.loads(run.read_text())
    return told


def _is_reproducible(told: dict[str, Any]) -> bool:
    return "samples" in told and told["args"]["temperature"] == 0 and told["dtype"] == "torch.float32"


RUNS = runs()
FIRST = {run.parent: run for run in reversed(RUNS)}
"""One run of each case."""

if not RUNS:
    pytest.skip(MISSING if root() is None else f"no eval case under {root()}", allow_module_level=True)


@cache
def target_of(run: Path) -> Target:
    """Return the golden target that a run's arguments name."""
    return load_target(target(read(run)["args"]["target_name_or_path"]))


@cache
def decoded(run: Path, batch: int) -> list[Decoded]:
    """Decode a run's prompts as it was decoded."""
    expected = read(run)
    target, draft = target_of(run), load_draft(run.parent / "draft")
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


def name(value: object) -> str | None:
    return f"{value.parent.name}-{value.stem}" if isinstance(value, Path) else None


@pytest.mark.parametrize(
    ("run", "batch"), [*((run, 8) for run in RUNS), *((run, 1) for run in FIRST.values())], ids=name
)
def test_rounds_are_those_of_the_public_evaluator(run: Path, batch: int) -> None:
    for ours, theirs in zip(decoded(run, batch), read(run)["samples"], strict=True):
        assert [*theirs["prompt_ids"], *ours.tokens][: len(theirs["output_ids"])] == theirs["output_ids"]
        assert [each.proposed for each in ours.rounds] == theirs["proposal_lengths"]
        assert [each.accepted for each in ours.rounds] == theirs["accepted_draft_lengths"]
        assert [each.accepted + (not each.stopped) for each in ours.rounds] == theirs["acceptance_lengths"]
        assert [each.stopped for each in ours.rounds] == [each["term"] for each in theirs["rounds"]]
        for mine, golden in zip(ours.rounds, theirs["rounds"], strict=True):
            told = golden["confidence"] or ()  # of the slots that were not cut
            assert mine.confidence[: len(told)] == pytest.approx(told, abs=2e-4)


@pytest.mark.parametrize("run", RUNS, ids=name)
def test_metrics_counted_their_way_are_theirs(run: Path) -> None:
    expected = read(run)
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


def recorded(told: dict[str, Any]) -> list[Decoded]:
    """Return a run's own rounds, with the confidences that it wrote down; slots that were cut tell none."""
    slots = len(told["metric_summary"]["proposals_at_pos"])
    return [
        Decoded(
            sample_id=str(number),
            prompt_tokens=len(sample["prompt_ids"]),
            tokens=tuple(sample["output_ids"][len(sample["prompt_ids"]) :]),
            finish_reason="stop",
            rounds=tuple(
                Round(
                    room=slots + 1,
                    proposed=proposed,
                    accepted=accepted,
                    stopped=bool(each["term"]),
                    confidence=tuple([*(each["confidence"] or ()), *[0.0] * slots][:slots]),
                )
                for each, proposed, accepted in zip(
                    sample["rounds"], sample["proposal_lengths"], sample["accepted_draft_lengths"], strict=True
                )
            ),
        )
        for number, sample in enumerate(told["samples"])
    ]


def in_a_thousand_bins(chances: np.ndarray) -> np.ndarray:
    """Return chances as the public evaluator ranks them: those of one bin are equal."""
    found: np.ndarray = np.minimum(np.floor(1000 * chances), 999)
    return found


JUDGED = sorted(run for run in (root() or Path()).glob("eval/*/*.json") if "confidence_row" in read(run))
"""Runs that tell how well confidences fit; of any temperature and dtype, since their own confidences are judged."""


@pytest.mark.parametrize("run", JUDGED, ids=name)
def test_calibration_of_the_same_confidences_is_theirs(run: Path) -> None:
    """ECE and AUROC jump where a confidence crosses the edge of a bin, so both sides judge what the run wrote down.

    The public AUROC ranks in a thousand bins, ours exactly. Held against it is ours of the same bins: where
    confidences lie closer than a bin, the exact one may be anything else.
    """
    row: dict[str, Any] = read(run)["confidence_row"]
    samples = recorded(read(run))
    ours = {each.position - 1: each for each in calibration(samples)}
    logits, proposed, accepted = traces(samples)
    chances = survival(logits)
    for golden in row["per_position"]:
        position, mine = golden["position"], ours[golden["position"]]
        assert mine.count == golden["total_weight"]
        if not mine.count:
            continue
        assert (mine.ece, mine.brier) == pytest.approx((golden["ece"], golden["brier"]), abs=1e-6)
        assert (mine.predicted, mine.observed) == pytest.approx((golden["pred_mean"], golden["target_mean"]), abs=1e-6)
        seen = proposed > position
        area = auroc(in_a_thousand_bins(chances[seen, position]), (accepted[seen] > position).astype(float))
        known = math.nan if golden["auc"] is None else golden["auc"]
        assert area == pytest.approx(known, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("run", [run for run in RUNS if "confidence_row" in read(run)], ids=name)
def test_what_does_not_jump_is_theirs_of_our_own_confidences_too(run: Path) -> None:
    ours = {each.position - 1: each for each in calibration(decoded(run, 8)) if each.count}
    for golden in read(run)["confidence_row"]["per_position"]:
        mine = ours[golden["position"]]
        assert mine.count == golden["total_weight"]
        assert mine.brier == pytest.approx(golden["brier"], abs=1e-4)
        assert (mine.predicted, mine.observed) == pytest.approx((golden["pred_mean"], golden["target_mean"]), abs=1e-4)


@pytest.mark.parametrize("run", [run for run in RUNS if "target_greedy_ids" in read(run)["samples"][0]], ids=name)
def test_greedy_output_is_the_targets_own(run: Path) -> None:
    for ours, theirs in zip(decoded(run, 8), read(run)["samples"], strict=True):
        assert [*theirs["prompt_ids"], *ours.tokens][: len(theirs["output_ids"])] == theirs["target_greedy_ids"]

"""Evaluate: decode benchmarks with target and draft, and score what was accepted.

scores.json                       typed numbers with intervals (deepspec/formats/scores.py)
traces-00000.jsonl.zst, …         every decoded sample with its rounds, one file a shard
acceptance.png, reliability.png   plots
report.html, report.md            the same for people
"""

from collections.abc import Mapping
from typing import Any

import torch

from deepspec.artifacts import Artifact
from deepspec.evaluate.evaluation import Evaluation
from deepspec.evaluate.shards import alike
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report


def run(
    spec: EvaluateSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> dict[str, Any]:
    """Decode what is not decoded yet, and score everything.

    Returns:
        counts for the manifest: accepted lengths and the lossless check among them.

    Raises:
        SourceError: a benchmark cannot be read, or the target has room for none of its questions.
        SpecError: the target has no room for a prompt beside an answer.
    """
    evaluation = _evaluation(spec, inputs, out, placement, report)
    evaluation.check()
    for numbers in alike(evaluation.shards, spec.shard_questions):
        evaluation.decode(*numbers)
    return evaluation.finish()


def shards(spec: EvaluateSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report) -> int:
    """Return the number of shards."""
    evaluation = _evaluation(spec, inputs, out, placement, report)
    evaluation.check()
    return len(evaluation.shards)


def run_shard(
    shard: int, spec: EvaluateSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> None:
    """Decode one shard, unless that is done already."""
    _evaluation(spec, inputs, out, placement, report).decode(shard)


def _evaluation(
    spec: EvaluateSpec, inputs: Mapping[str, Artifact], out: Out, placement: Placement, report: Report
) -> Evaluation:
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    return Evaluation(spec, inputs["draft"], out, placement, report)

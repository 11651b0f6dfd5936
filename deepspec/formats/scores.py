"""scores.json: what an evaluation found, typed and versioned; and the traces that it was computed from.

A number that could not be computed (nothing was counted) is null. Files of version 1 are read, too: they do not tell
how many turns were asked for in all, what prompts there was room for, and whether fitted temperatures help.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import zstandard
from pydantic import Field, ValidationError

from deepspec.artifacts import Artifact
from deepspec.errors import CorruptArtifactError
from deepspec.formats.numbers import Frozen, Interval
from deepspec.lines.rows import read_rows
from deepspec.rounds.decoded import Decoded, Round

VERSION: Literal[2] = 2

SCORES = "scores.json"
"""Name of the file in the artifact."""


class Acceptance(Frozen):
    """How many drafted tokens the target accepted."""

    samples: int
    rounds: int
    tokens: int
    """Generated, the first of each sample left out: no round makes it."""
    accepted_length: Interval
    """Mean over rounds of accepted drafted tokens + 1, the target's own."""
    accepted_length_without_bonus: Interval
    accepted_length_per_sample: Interval
    """Mean over samples of each one's own mean: long answers count no more than short ones."""
    verify_rate: Interval
    """Σ(accepted + 1) / Σ(proposed + 1)."""
    proposal_length: Interval
    tokens_per_round: Interval
    """As accepted_length, but a round that ends in an accepted stop token has no token of the target's own."""
    tau_deepspec: Interval
    """As the public evaluator counts, for comparison: tokens beyond the limit in, no bonus in a round that stops."""
    cumulative: tuple[Interval, ...]
    """Position k: accepted at least k, among rounds that proposed k."""
    conditional: tuple[Interval, ...]
    """Position k: accepted, given that all before it were."""


class BenchmarkScore(Frozen):
    """One benchmark at one temperature."""

    benchmark: str
    digest: str
    temperature: float
    questions: int
    asked_for: int | None
    """Questions that the spec asks for; more than there are is said, not an error."""
    too_long: int
    """Turns left out because prompt and answer do not fit the target's positions."""
    turns: int | None = None
    """Turns of all questions, those left out among them."""
    unscored: int = 0
    """Turns that were decoded and tell nothing: the answer ended with its first token, which no round makes."""
    stopped: int
    """Turns that ended with a stop token."""
    acceptance: Acceptance | None
    """None where nothing was decoded."""


class Slice(Frozen):
    """Samples of one temperature, grouped by a length."""

    by: Literal["output_length", "context_length"]
    low: int
    high: int
    temperature: float
    acceptance: Acceptance


class ContextScore(Frozen):
    """Questions behind other material that fills their prompts to a length."""

    length: int
    """Tokens that a first prompt has at most."""
    temperature: float
    questions: int
    too_long: int
    """Turns that were not asked: the target has no room for them, or their own prompts are longer."""
    prompt_tokens: int | None
    """Mean over the turns that were asked."""
    acceptance: Acceptance | None
    """None where nothing was decoded."""


class Divergence(Frozen):
    """Where speculative and plain decoding part."""

    sample_id: str
    position: int
    """Generated token, from 0."""
    margin: float
    """From the target's best logit there down to the lower one of the two tokens that were chosen."""
    rounding: float = 0.0
    """How far a logit moves there where the target reads the last token by itself instead of all in one pass."""
    tie: bool
    """Whether the margin is so small that rounding decides."""


class LosslessCheck(Frozen):
    """Speculative decoding at temperature 0 against the target's own `generate`."""

    samples: int
    equal: int
    ties: int
    """Samples that part at a near-tie of the target: not an error."""
    divergences: tuple[Divergence, ...]

    @property
    def passed(self) -> bool | None:
        """Return whether every sample is equal up to a near-tie; None where none was checked."""
        return self.equal + self.ties == self.samples if self.samples else None


class Reliability(Frozen):
    """One bar of a reliability diagram."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


class PositionCalibration(Frozen):
    """Confidence of one position (the product through it) against what happened."""

    position: int
    count: int
    ece: float | None
    auroc: float | None
    brier: float | None
    predicted: float | None
    observed: float | None
    bins: tuple[Reliability, ...]


class ThresholdScore(Frozen):
    """What cutting proposals at a threshold of the cumulative confidence would give, by replay of recorded rounds."""

    threshold: float
    proposal_length: float
    accepted_length: float
    verify_rate: float


class PositionFit(Frozen):
    """The temperature fitted for one position, and what it does on rounds that its fit has not seen."""

    position: int
    temperature: float
    difference: Interval
    """Of the expected calibration error, with the temperature less without it, by cross-validation over samples."""
    kept: bool
    """Whether it is used: it helps, and the whole of the fit does no harm."""


class CalibrationScore(Frozen):
    """The confidence head, before and after temperatures that were fitted on other prompts."""

    temperature: float
    """Sampling temperature of the rounds that are judged."""
    confidence_temperatures: tuple[float, ...]
    """One per position, to divide its confidence logit by; 1 where the fitted one does not help, empty where none."""
    fitted_rounds: int
    fits: tuple[PositionFit, ...] = ()
    """What was fitted, used or not; empty where nothing could be."""
    before: tuple[PositionCalibration, ...]
    after: tuple[PositionCalibration, ...]
    thresholds: tuple[ThresholdScore, ...]
    """With the fitted temperatures."""


class Difference(Frozen):
    """Two drafts, or one at two times, on the questions that both were asked."""

    benchmark: str
    """`all`: every one together."""
    temperature: float
    samples: int
    first: float
    second: float
    """Accepted lengths with bonus."""
    difference: Interval
    """Second less first, with the interval of paired samples."""

    @property
    def verdict(self) -> Literal["better", "worse", "no difference seen"]:
        """Return what the interval allows to say of the second."""
        if (self.difference.low or 0) > 0:
            return "better"
        return "worse" if (self.difference.high or 0) < 0 else "no difference seen"

    def row(self) -> dict[str, Any]:
        """Return one row of the table that people read."""
        value, low, high = self.difference.value or 0, self.difference.low or 0, self.difference.high or 0
        return {
            "benchmark": self.benchmark,
            "temperature": self.temperature,
            "samples": self.samples,
            "first": f"{self.first:.3f}",
            "second": f"{self.second:.3f}",
            "difference": f"{value:+.3f}",
            "95 % interval": f"{low:+.3f} to {high:+.3f}",
            "the second is": self.verdict,
        }


class Comparison(Frozen):
    """Scores against earlier ones of the same questions."""

    baseline: str
    """Address of the earlier scores."""
    differences: tuple[Difference, ...]
    """First: the baseline, second: these scores."""
    regressions: tuple[str, ...]
    """In what way these are worse; empty where nothing says so."""


class Scores(Frozen):
    """scores.json."""

    version: Literal[1, 2] = VERSION
    algorithm: str
    draft: str
    """Address of the draft's artifact."""
    target: str
    """Digest of the target."""
    slots: int
    """Tokens proposed per round, at most."""
    prompt_room: int | None = None
    """Most tokens that a prompt may have: the target's positions without those of the answer and of a proposal."""
    overall: dict[str, Acceptance]
    """Temperature -> all benchmarks together."""
    benchmarks: tuple[BenchmarkScore, ...]
    slices: tuple[Slice, ...]
    contexts: tuple[ContextScore, ...] = Field(default=(), exclude_if=lambda found: not found)
    """Where questions were asked behind contexts of given lengths, by length."""
    untrained: Acceptance | None
    """A fresh draft of the same shape, at the first temperature: what no training gives."""
    lossless: LosslessCheck | None
    calibration: tuple[CalibrationScore, ...]
    comparison: Comparison | None = None
    """With the baseline that the evaluation was asked to hold itself against."""

    @property
    def is_lossless(self) -> bool | None:
        """Return what the lossless check found; None where no sample was checked."""
        return None if self.lossless is None else self.lossless.passed


def read_scores(path: Path) -> Scores:
    """Return the scores in a file.

    Raises:
        CorruptArtifactError: it is not one, or of a later version.
    """
    try:
        return Scores.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise CorruptArtifactError(f"{path} is not a scores.json of version {VERSION}: {error}") from error


def trace_row(decoded: Decoded, **labels: Any) -> dict[str, Any]:
    """Return a decoded sample as a row of a trace file, with labels beside it."""
    rounds = [
        [each.room, each.proposed, each.accepted, each.stopped, [round(c, 4) for c in each.confidence]]
        for each in decoded.rounds
    ]
    return {
        **labels,
        "sample_id": decoded.sample_id,
        "prompt_tokens": decoded.prompt_tokens,
        "tokens": list(decoded.tokens),
        "finish_reason": decoded.finish_reason,
        "rounds": rounds,
    }


def trace_rows(scores: Artifact) -> Iterator[dict[str, Any]]:
    """Yield the rows of all trace files of published scores; a file may hold none, where every prompt was too long."""
    for name in scores.names():
        if name.endswith(".jsonl.zst") and not _is_empty(scores.path(name)):
            yield from (row for _, row in read_rows(scores.path(name)))


def decoded_of(row: Mapping[str, Any]) -> Decoded:
    """Return the sample that a row of a trace file tells of."""
    return Decoded(
        sample_id=row["sample_id"],
        prompt_tokens=row["prompt_tokens"],
        tokens=tuple(row["tokens"]),
        finish_reason=row["finish_reason"],
        rounds=tuple(
            Round(room=room, proposed=proposed, accepted=accepted, stopped=stopped, confidence=tuple(confidence))
            for room, proposed, accepted, stopped, confidence in row["rounds"]
        ),
    )


def _is_empty(path: Path) -> bool:
    with zstandard.open(path, "rb") as file:
        return not file.read(1)

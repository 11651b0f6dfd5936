"""Scores as rows of the tables that people read."""

from typing import Any

from deepspec.formats.scores import Acceptance, CalibrationScore, Interval, LosslessCheck, Scores, ThresholdScore

COUNTED = (
    "Accepted length is the mean number of tokens that a round makes, the target's own (the bonus) among them unless a "
    "column says otherwise; intervals are 95 %, by bootstrap over samples."
)


def acceptance_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return a row for each benchmark and temperature, for all together, and for the untrained draft."""
    rows = [acceptance_row(each.benchmark, each.temperature, each.acceptance) for each in scores.benchmarks]
    rows += [acceptance_row("all", float(temperature), found) for temperature, found in scores.overall.items()]
    if scores.untrained is not None:
        rows.append(acceptance_row("untrained draft", float(next(iter(scores.overall), "0")), scores.untrained))
    return rows


def acceptance_row(name: str, temperature: float, found: Acceptance | None) -> dict[str, Any]:
    """Return one row; little more than its name where nothing was decoded."""
    row: dict[str, Any] = {"benchmark": name, "temperature": f"{temperature:g}"}
    if found is None:
        return row | {"samples": 0}
    return row | {
        "samples": found.samples,
        "accepted length (with bonus)": _told(found.accepted_length),
        "95 % interval": _between(found.accepted_length),
        "without bonus": _told(found.accepted_length_without_bonus),
        "verify rate": _told(found.verify_rate),
        "mean of samples": _told(found.accepted_length_per_sample),
        "tau_deepspec": _told(found.tau_deepspec),
    }


def position_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return acceptance by position, all benchmarks together: cumulative, and given that all before were accepted."""
    return [
        {
            "position": k,
            "temperature": f"{float(temperature):g}",
            "cumulative": _told(found.cumulative[k - 1]),
            "cumulative, 95 %": _between(found.cumulative[k - 1]),
            "conditional": _told(found.conditional[k - 1]),
            "conditional, 95 %": _between(found.conditional[k - 1]),
        }
        for temperature, found in scores.overall.items()
        for k in range(1, len(found.cumulative) + 1)
    ]


def slice_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return acceptance by output and context length."""
    rows = []
    for each in scores.slices:
        tokens = f"{each.low} to {each.high - 1}" if each.high < 1 << 30 else f"{each.low} and more"
        row = acceptance_row("all", each.temperature, each.acceptance)
        rows.append({"by": each.by.replace("_", " "), "tokens": tokens, **row})
    return rows


def calibration_rows(score: CalibrationScore) -> list[dict[str, Any]]:
    """Return calibration by position, before and after the fit."""
    temperatures = [f"{each:.2f}" for each in score.confidence_temperatures] or ["not fitted"] * len(score.before)
    return [
        {
            "position": before.position,
            "rounds": before.count,
            "fitted temperature": fitted,
            "ECE": _number(before.ece, 4),
            "ECE after fit": _number(after.ece, 4),
            "AUROC": _number(before.auroc, 4),
            "Brier": _number(before.brier, 4),
            "Brier after fit": _number(after.brier, 4),
        }
        for before, after, fitted in zip(score.before, score.after, temperatures, strict=True)
    ]


def threshold_rows(thresholds: tuple[ThresholdScore, ...]) -> list[dict[str, Any]]:
    """Return what cutting proposals at thresholds of the cumulative confidence would give."""
    return [
        {
            "confidence threshold": f"{each.threshold:g}",
            "proposed per round": _number(each.proposal_length),
            "accepted length (with bonus)": _number(each.accepted_length),
            "verify rate": _number(each.verify_rate),
        }
        for each in thresholds
    ]


def lossless_text(check: LosslessCheck | None) -> str:
    """Return what the lossless check found, in a sentence."""
    if check is None:
        return "Losslessness was not checked."
    return (
        f"At temperature 0 against the target's own generation: {'lossless' if check.passed else 'NOT lossless'}; "
        f"{check.equal} of {check.samples} samples are equal token for token, {check.ties} part where the target's "
        "best logits are closer than rounding moves them."
    )


def _told(found: Interval) -> str:
    return _number(found.value)


def _between(found: Interval) -> str:
    return f"{_number(found.low)} to {_number(found.high)}"


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"

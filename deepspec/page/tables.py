"""Scores as rows of the tables that people read."""

from collections.abc import Iterable
from typing import Any

from deepspec.formats.numbers import Interval
from deepspec.formats.scores import (
    Acceptance,
    BenchmarkScore,
    CalibrationScore,
    LosslessCheck,
    PositionFit,
    Scores,
    ThresholdScore,
)

COUNTED = (
    "Accepted length is the mean number of tokens that a round makes, the target's own (the bonus) among them unless a "
    "column says otherwise; intervals are 95 %, by bootstrap over samples."
)


def acceptance_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return a row for each benchmark and temperature, for all together, and for the untrained draft.

    Where turns were left out, a column says how many.
    """
    rows = [acceptance_row(each.benchmark, each.temperature, each.acceptance) for each in scores.benchmarks]
    rows += [acceptance_row("all", float(temperature), found) for temperature, found in scores.overall.items()]
    if left_out(scores):
        at = [[each for each in scores.benchmarks if each.temperature == float(t)] for t in scores.overall]
        counts = [_left_out((each,)) for each in scores.benchmarks] + [_left_out(each) for each in at]
        rows = [{**row, "turns left out": count} for row, count in zip(rows, counts, strict=True)]
    if scores.untrained is not None:
        rows.append(acceptance_row("untrained draft", float(next(iter(scores.overall), "0")), scores.untrained))
    return rows


def left_out(scores: Scores) -> list[str]:
    """Return which turns the scores do not rest on, how many and why: a line for each benchmark and reason."""
    told: dict[tuple[str, str], list[float]] = {}
    for each in scores.benchmarks:
        for reason in _reasons(each, scores.prompt_room):
            told.setdefault((each.benchmark, reason), []).append(each.temperature)
    asked_at = sorted({each.temperature for each in scores.benchmarks})
    return [
        f"{name}{'' if sorted(at) == asked_at else f' at temperature {_listed(at)}'}: {reason}"
        for (name, reason), at in told.items()
    ]


def contexts_left_out(scores: Scores) -> list[str]:
    """Return which turns were not asked behind a context, a line for each length."""
    return [
        f"a context of {each.length} tokens: {each.too_long} turns of {each.questions} questions were not asked, the "
        f"target has room for prompts of {scores.prompt_room} tokens"
        for each in scores.contexts
        if each.too_long
    ]


def _reasons(score: BenchmarkScore, room: int | None) -> list[str]:
    """Return why turns of a benchmark tell nothing, each with their number."""
    of = "" if score.turns is None else f" of {score.turns}"
    limit = "" if room is None else f" than the {room} tokens that the target has room for beside an answer"
    found = []
    if score.too_long:
        found.append(
            f"{score.too_long}{of} turns were not asked, their prompts are longer{limit or ' than the target reads'}"
        )
    if score.unscored:
        found.append(f"{score.unscored}{of} turns were answered with one token, which no round makes")
    return found


def _left_out(scores: Iterable[BenchmarkScore]) -> int:
    return sum(each.too_long + each.unscored for each in scores)


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{each:g}" for each in numbers)


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


def context_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return acceptance behind contexts of given lengths."""
    rows = []
    for each in scores.contexts:
        told = {"context": each.length, "prompt tokens": each.prompt_tokens, "not asked": each.too_long}
        found = {} if each.acceptance is None else acceptance_row("all", each.temperature, each.acceptance)
        rows.append({**told, **{name: value for name, value in found.items() if name != "benchmark"}})
    return rows


def calibration_rows(score: CalibrationScore) -> list[dict[str, Any]]:
    """Return calibration by position, before and after the temperatures that are used, and whether each one helps."""
    used = [f"{each:.2f}" for each in score.confidence_temperatures] or [_unused(score)] * len(score.before)
    fits = {each.position: each for each in score.fits}
    return [
        {
            "position": before.position,
            "rounds": before.count,
            "fitted temperature": temperature,
            "ECE": _number(before.ece, 4),
            "ECE after fit": _number(after.ece, 4),
            "AUROC": _number(before.auroc, 4),
            "Brier": _number(before.brier, 4),
            "Brier after fit": _number(after.brier, 4),
            **({"fit": _fit(fits[before.position])} if before.position in fits else {}),
        }
        for before, after, temperature in zip(score.before, score.after, used, strict=True)
    ]


def calibration_text(score: CalibrationScore) -> str:
    """Return on what confidence temperatures were fitted and whether they are used, in a few sentences."""
    if not score.fitted_rounds:
        return "Confidence temperatures were not fitted: no prompt of the calibration split was decoded."
    text = f"Confidence temperatures were fitted on {score.fitted_rounds} rounds of the calibration split."
    if not score.fits:
        return text if score.confidence_temperatures else f"{text} They are too few to tell whether the fit helps."
    judged = (
        "A fitted one is used where the expected calibration error (ECE) falls on rounds that the fit has not seen, "
        "the 95 % interval of the change below zero"
    )
    kept = [str(each.position) for each in score.fits if each.kept]
    if not kept:
        return f"{text} None is used. {judged}: at no position is it."
    others = "" if len(kept) == len(score.fits) else "; elsewhere confidences stay as they are"
    return f"{text} {judged}: at {'position' if len(kept) == 1 else 'positions'} {', '.join(kept)}{others}."


def _unused(score: CalibrationScore) -> str:
    return "not used" if score.fits else "not fitted"


def _fit(found: PositionFit) -> str:
    """Return what a fitted temperature does to rounds that it was not fitted on."""
    change = (
        f"ECE {_signed(found.difference.value)} [{_signed(found.difference.low)}, {_signed(found.difference.high)}]"
    )
    return f"{found.temperature:.2f}: {change}, {'used' if found.kept else 'not used'}"


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
    if check.passed is None:
        return "Losslessness was not checked: no sample was decoded that could be held against the target alone."
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


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.4f}"

"""Scores for people: title, warnings and sections of a report."""

from collections.abc import Mapping

from deepspec.formats.scores import CalibrationScore, Comparison, Scores
from deepspec.page.page import Section
from deepspec.page.tables import (
    COUNTED,
    acceptance_rows,
    calibration_rows,
    calibration_text,
    context_rows,
    contexts_left_out,
    left_out,
    lossless_text,
    position_rows,
    slice_rows,
    threshold_rows,
)


def title(scores: Scores) -> str:
    """Return the heading."""
    return f"Scores of a {scores.algorithm} draft"


def warnings(scores: Scores) -> list[str]:
    """Return what must be seen first."""
    told = [
        f"Worse than the baseline: {each}." for each in (scores.comparison.regressions if scores.comparison else ())
    ]
    if scores.is_lossless is False:
        told.append("Decoding at temperature 0 was not lossless.")
    return [*told, *left_out_warnings(scores)]


def left_out_warnings(scores: Scores) -> list[str]:
    """Return what the scores do not rest on."""
    return [f"Left out of the scores: {each}." for each in left_out(scores)]


def sections(scores: Scores, figures: Mapping[str, bytes]) -> list[Section]:
    """Return the report's parts.

    Args:
        scores: what was found.
        figures: name -> PNG: `acceptance`, and `reliability` where there is one.
    """
    subject = (
        f"Draft {scores.draft}, target {scores.target}, at most {scores.slots} tokens proposed per round. {COUNTED}"
    )
    curves = {"acceptance by position": figures["acceptance"]}
    parts = [
        Section(texts=[subject, lossless_text(scores.lossless), *_short(scores)]),
        Section(title="Acceptance", rows=acceptance_rows(scores)),
        *(_comparison(each) for each in [scores.comparison] if each),
        Section(title="By position", rows=position_rows(scores), figures=curves),
        Section(title="By length", rows=slice_rows(scores)),
        *_contexts(scores),
    ]
    for place, each in enumerate(scores.calibration):
        parts += _calibration(each, {"reliability": figures["reliability"]} if place == 0 else {})
    return parts


def _contexts(scores: Scores) -> list[Section]:
    if not scores.contexts:
        return []
    text = "Questions behind other material that fills their prompts to a length, the same questions at each."
    lines = [f"{text} {'; '.join(contexts_left_out(scores))}".strip()]
    return [Section(title="By context", texts=lines, rows=context_rows(scores))]


def _comparison(found: Comparison) -> Section:
    verdict = "Nothing says that the draft is worse than it was." if not found.regressions else ""
    text = f"The baseline, first, is scores/{found.baseline}. {verdict}"
    return Section(title="Against the baseline", texts=[text], rows=[each.row() for each in found.differences])


def _calibration(score: CalibrationScore, figures: Mapping[str, bytes]) -> list[Section]:
    cut = (
        "By replay of the recorded rounds: a proposal is cut before the first slot at which the product of its "
        "calibrated confidences falls below the threshold."
    )
    title = f"Confidence at temperature {score.temperature:g}"
    return [
        Section(title=title, texts=[calibration_text(score)], rows=calibration_rows(score), figures=figures),
        Section(title=f"{title}: thresholds", texts=[cut], rows=threshold_rows(score.thresholds)),
    ]


def _short(scores: Scores) -> list[str]:
    short = [
        f"{each.benchmark}: {each.questions} questions, {each.asked_for} were asked for"
        for each in scores.benchmarks
        if each.asked_for is not None and each.questions < each.asked_for
    ]
    return [f"Fewer rows than asked for: {'; '.join(dict.fromkeys(short))}."] if short else []

"""Scores for people: markdown, and one self-contained HTML page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from deepspec.evaluate.score import acceptance_row
from deepspec.formats.scores import CalibrationScore, Comparison, LosslessCheck, Scores


def acceptance_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return the table of accepted lengths: each benchmark, all together, and the untrained draft."""
    rows = [acceptance_row(each.benchmark, each.temperature, each.acceptance) for each in scores.benchmarks]
    rows += [acceptance_row("all", float(temperature), found) for temperature, found in scores.overall.items()]
    if scores.untrained is not None:
        rows.append(acceptance_row("untrained draft", float(next(iter(scores.overall), "0")), scores.untrained))
    return rows


def markdown(scores: Scores) -> str:
    """Return the report of an evaluation."""
    parts = [
        f"# Scores of a {scores.algorithm} draft",
        f"Draft `{scores.draft}`, target `{scores.target}`, at most {scores.slots} tokens proposed per round. "
        "Accepted length counts the target's own token of each round (bonus) unless a column says otherwise; "
        "intervals are 95 %, by bootstrap over samples.",
        table(acceptance_rows(scores)),
        _lossless(scores.lossless),
        _comparison(scores.comparison),
        *(_calibration(each) for each in scores.calibration),
    ]
    short = [
        f"{each.benchmark}: {each.questions} questions, {each.asked_for} were asked for"
        for each in scores.benchmarks
        if each.asked_for is not None and each.questions < each.asked_for
    ]
    return "\n\n".join(
        [part for part in parts if part] + ([f"Fewer rows than asked for: {'; '.join(short)}."] if short else [])
    )


def html(scores: Scores, figures: Mapping[str, bytes]) -> str:
    """Return the report as one HTML page that needs nothing else.

    Args:
        scores: what was found.
        figures: name -> SVG, put into the page.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=select_autoescape(("html", "j2"))).get_template("report.html.j2")
    tables = {"Acceptance": acceptance_rows(scores), "By length": slice_rows(scores)}
    if scores.comparison is not None:
        tables["Against the baseline"] = [each.row() for each in scores.comparison.differences]
    tables |= {f"Confidence at temperature {each.temperature}": calibration_rows(each) for each in scores.calibration}
    return page.render(
        title=f"Scores of a {scores.algorithm} draft",
        scores=scores,
        tables=tables,
        figures={name: svg[svg.index(b"<svg") :].decode() for name, svg in figures.items()},
    )


def slice_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return acceptance by output and context length."""
    return [
        {
            "by": each.by.replace("_", " "),
            "tokens": f"{each.low} to {each.high - 1}" if each.high < 1 << 30 else f"{each.low} and more",
            **acceptance_row("all", each.temperature, each.acceptance),
        }
        for each in scores.slices
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a markdown table; columns are those of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lossless(check: LosslessCheck | None) -> str:
    if check is None:
        return ""
    verdict = "lossless" if check.passed else "**not lossless**"
    told = (
        f"Temperature 0 against the target's own generation: {verdict}; {check.equal} of {check.samples} samples equal"
    )
    return f"{told}, {check.ties} part at a near-tie of the target's logits."


def _comparison(found: Comparison | None) -> str:
    if found is None:
        return ""
    verdict = f"**Worse: {'; '.join(found.regressions)}.**" if found.regressions else "Nothing says that it is worse."
    rows = table([each.row() for each in found.differences])
    return f"## Against the baseline `{found.baseline}`\n\n{verdict}\n\n{rows}"


def _calibration(score: CalibrationScore) -> str:
    temperatures = ", ".join(f"{each:.2f}" for each in score.confidence_temperatures) or "none fitted"
    title = f"## Confidence at temperature {score.temperature}"
    rounds = f"{score.fitted_rounds} rounds of the calibration split"
    fit = f"Confidence temperatures by position: {temperatures} (from {rounds})."
    return f"{title}\n\n{fit}\n\n{table(calibration_rows(score))}"


def calibration_rows(score: CalibrationScore) -> list[dict[str, Any]]:
    """Return calibration by position, before and after the fit."""
    return [
        {
            "position": before.position,
            "rounds": before.count,
            "ECE": _told(before.ece),
            "ECE after fit": _told(after.ece),
            "AUROC": _told(before.auroc),
            "Brier": _told(before.brier),
            "Brier after fit": _told(after.brier),
        }
        for before, after in zip(score.before, score.after, strict=True)
    ]


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

"""Target and draft as an engine serves them, against what the evaluation decoded of the same questions."""

from deepspec.artifacts import Artifact
from deepspec.benchmark.asked import first_turns
from deepspec.benchmark.engine import check_engine
from deepspec.chat.template import ChatTemplate
from deepspec.errors import SpecError
from deepspec.formats.speed import EngineSpeed
from deepspec.placement import Placement
from deepspec.report import Report


def ask_engine(
    scores: Artifact, template: ChatTemplate, placement: Placement, count: int, report: Report
) -> EngineSpeed | None:
    """Ask the placement's engine what it accepts; say so where that is not what was measured here.

    Args:
        scores: of the draft that the engine serves.
        template: of the target.
        placement: its engines and the places of benchmarks.
        count: questions, at most; 0: none is asked.
        report: hears of a disagreement, and why no engine is asked.
    """
    if not count or not placement.drafting:
        return None
    try:
        asked = first_turns(scores, placement, template, count)
    except SpecError as error:
        report.log(f"no engine is asked: {error}")
        return None
    plain = placement.endpoints[0] if placement.endpoints else None
    found = check_engine(placement.drafting[0], plain, asked, scores.manifest.spec["max_new_tokens"])
    if found.warning:
        report.log(f"WARNING: {found.warning}")
    return found

"""Target and draft as an engine serves them, against what the evaluation decoded of the same questions."""

from deepspec.artifacts import Artifact, Placement, Report
from deepspec.benchmark.asked import decoded, prompt_ids, questions
from deepspec.benchmark.engine import check_engine
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.decoding.pair import Pair
from deepspec.formats.speed import EngineSpeed


def ask_engine(
    spec: BenchmarkSpec, scores: Artifact, pair: Pair, placement: Placement, report: Report
) -> EngineSpeed | None:
    """Ask an engine the first turns that the evaluation decoded at temperature 0; say so where it accepts otherwise."""
    if not spec.engine_samples or not placement.drafting:
        return None
    settings = scores.manifest.spec
    asked = questions(spec.but(seed=settings["seed"]), placement, settings["samples"])
    found_here = {each.sample_id.removesuffix("#0"): each for each in decoded(scores, 0.0)}
    chosen = [each for name, each in asked.items() if name in found_here][: spec.engine_samples]
    if not chosen or settings["thinking"]:
        report.log("no engine is asked: the evaluation decoded nothing at temperature 0 without thinking")
        return None
    pairs = [(prompt_ids(pair, each), found_here[each.question_id]) for each in chosen]
    plain = placement.endpoints[0] if placement.endpoints else None
    found = check_engine(placement.drafting[0], plain, pairs, settings["max_new_tokens"])
    if found.warning:
        report.log(f"WARNING: {found.warning}")
    return found

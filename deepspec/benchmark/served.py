"""Target and draft as an engine serves them: against what the evaluation decoded, and under load."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from deepspec import families
from deepspec.artifacts import Artifact, ArtifactRef
from deepspec.benchmark.asked import asked_questions, filled, first_turns, prompt_ids
from deepspec.benchmark.spec import BenchmarkSpec, hardware_fingerprint
from deepspec.chat.template import ChatTemplate
from deepspec.errors import SpecError
from deepspec.formats.benchmarks import Benchmark
from deepspec.formats.engine_speed import EngineSpeed
from deepspec.formats.exports import read_index
from deepspec.formats.questions import BenchmarkQuestion, read_questions
from deepspec.formats.scores import SCORES, read_scores
from deepspec.formats.serve_options import ServeOptions
from deepspec.formats.served import UnderLoad
from deepspec.formats.speed import SPEED, read_speed
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.report import Report
from deepspec.serving.check import DecodedPrompt, ServedShape, check_engine
from deepspec.serving.figure import by_load
from deepspec.serving.measure import ServedSubject, under_load

SERVED_FIGURE = "served.png"
"""Name of the plot in the artifact."""


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


def ask_under_load(
    inputs: Mapping[str, Artifact], template: ChatTemplate, placement: Placement, spec: BenchmarkSpec, report: Report
) -> UnderLoad | None:
    """Measure the placement's engines under the loads that a spec wants; say first what is wrong with them.

    Args:
        inputs: exports and scores of the draft that the engine serves.
        template: of the target.
        placement: its engines, and the places of benchmarks and files.
        spec: with the loads.
        report: hears of what is wrong.

    Raises:
        EngineError: an engine cannot be reached, or serves another target.
        SpecError: a prompt is to be longer than the target reads.
    """
    if not spec.serve.wanted or not placement.drafting:
        return None
    folder = placement.target_folder(spec.target.digest)
    found = under_load(subject(inputs, template, folder, placement, spec.serve), spec.serve, report)
    for each in found.warnings:
        report.log(f"WARNING: {each}")
    return found


def subject(
    inputs: Mapping[str, Artifact], template: ChatTemplate, folder: Path, placement: Placement, options: ServeOptions
) -> ServedSubject:
    """Return what is measured under load, with its prompts: the questions of an evaluation, or those of a file.

    Args:
        inputs: exports, or a release, and scores of the draft that the engine serves.
        template: of the target.
        folder: of the target.
        placement: its engines, and the places of benchmarks and files.
        options: which prompts.

    Raises:
        SpecError: no prompt has room beside its answer.
        SourceError: a file or benchmark is not where the placement says.
    """
    scores, served = inputs["scores"], read_index(inputs["exports"]).forms.get("sglang")
    shape, told = families.read_folder(folder), read_scores(scores.path(SCORES))
    decoded = told.overall.get("0.0") or next(iter(told.overall.values()), None)
    return ServedSubject(
        drafting=placement.drafting[0],
        plain=placement.endpoints[0] if placement.endpoints else None,
        target=ServedShape(name=f"the release's target {told.target}", hidden_size=shape.block.hidden_size),
        slots=told.slots,
        shares=[each.value or 0.0 for each in decoded.cumulative] if decoded else [],
        prompts=_prompts(scores, template, placement, options, shape.max_positions),
        known=_known(scores, placement, template, options.checked),
        known_tokens=scores.manifest.spec["max_new_tokens"],
        hardware=hardware_fingerprint(threads=placement.threads),
        options=() if served is None else served.options,
    )


def _prompts(
    scores: Artifact, template: ChatTemplate, placement: Placement, options: ServeOptions, positions: int
) -> dict[int | None, list[list[int]]]:
    """Return length -> prompts; the length None stands for prompts as they are."""
    most = positions - options.max_tokens
    if options.contexts and options.contexts[-1] > most:
        raise SpecError(
            f"prompts of {options.contexts[-1]} tokens and answers of {options.max_tokens} are more than the "
            f"{positions} positions of the target; shorten them"
        )
    asked = _asked(scores, placement, options)
    if options.contexts:
        return {length: filled(template, asked, length, options.seed) for length in options.contexts}
    ids = [found for each in asked if len(found := prompt_ids(template, each)) <= most]
    if not ids:
        raise SpecError(f"no prompt has room for an answer of {options.max_tokens} tokens in the target's {positions}")
    return {None: ids}


def _asked(scores: Artifact, placement: Placement, options: ServeOptions) -> list[BenchmarkQuestion]:
    if not options.prompts:
        return list(asked_questions(scores, placement).values())
    file = Benchmark(name="prompts", digest=options.prompts)
    return read_questions(file, placement.locations.get(file.digest, file.digest), None, options.seed)


def _known(scores: Artifact, placement: Placement, template: ChatTemplate, count: int) -> list[DecodedPrompt]:
    """Return what can be held against an engine; nothing where nothing was decoded at temperature 0."""
    try:
        return first_turns(scores, placement, template, count) if count else []
    except SpecError:  # told among the warnings of what is measured
        return []


def publish_served(speed: Artifact, found: UnderLoad, spec: BenchmarkSpec, out: Out, version: int) -> ArtifactRef:
    """Publish a speed artifact once more, with what engines gave under load; return where it is.

    Args:
        speed: its other numbers are kept.
        found: under load.
        spec: that of the speed, with the loads.
        out: where it goes.
        version: of the stage.
    """
    for name in set(speed.names()) - {SPEED, SERVED_FIGURE}:
        shutil.copyfile(speed.path(name), out.file(name))
    told = read_speed(speed.path(SPEED)).model_copy(update={"under_load": found})
    out.file(SPEED).write_text(told.model_dump_json(indent=1) + "\n", encoding="utf-8")
    out.file(SERVED_FIGURE).write_bytes(by_load(found))
    return out.publish(spec, version, {**speed.manifest.counts, "under_load": found.counts()})

"""The units of an evaluation: some questions at one temperature, for one purpose. Each leaves one file of traces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from deepspec.artifacts import Artifact, open_artifact
from deepspec.errors import NotPublishedError, SourceError
from deepspec.evaluate.spec import EvaluateSpec
from deepspec.formats.benchmarks import HUB, Benchmark
from deepspec.formats.questions import BenchmarkQuestion, read_questions
from deepspec.messages.conversations import published_prompts, user_texts
from deepspec.placement import Placement

ShardRole = Literal["benchmark", "lossless", "untrained", "calibration", "context"]
"""What traces are for: scores; the lossless check where no benchmark is decoded at temperature 0; comparison with a
fresh draft; fitting confidence temperatures; what a long context does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Questions that are decoded together."""

    role: ShardRole
    name: str
    """Of the benchmark; of the role where it is no benchmark's."""
    temperature: float
    questions: tuple[BenchmarkQuestion, ...]
    context: int | None = None
    """Tokens to which their prompts are to be filled."""


def shards(
    spec: EvaluateSpec,
    draft: Artifact,
    placement: Placement,
    *,
    confident: bool,
    fits: Callable[[BenchmarkQuestion], bool] = lambda _: True,
) -> list[Shard]:
    """Return the shards of an evaluation, always the same for the same spec and draft.

    Args:
        spec: what is evaluated.
        draft: the draft's artifact; prompts of the calibration split are found through what it was made from.
        placement: says where benchmarks lie.
        confident: whether the draft tells confidences.
        fits: whether the target has room for a question; where a few are chosen, only such are.
    """
    asked = {each.name: _questions(spec, each, placement) for each in spec.benchmarks}
    found = [
        Shard(role="benchmark", name=name, temperature=temperature, questions=tuple(rows[start : start + size]))
        for temperature in spec.temperatures
        for name, rows in asked.items()
        for size in [spec.shard_questions]
        for start in range(0, len(rows), size)
    ]
    if spec.lossless_samples and 0.0 not in spec.temperatures:
        found.append(_extra("lossless", 0.0, spread(asked, spec.lossless_samples, fits)))
    if spec.untrained_samples:
        found.append(_extra("untrained", spec.temperatures[0], spread(asked, spec.untrained_samples, fits)))
    for length in spec.contexts:
        rows = spread(asked, spec.context_samples)
        found.append(replace(_extra("context", spec.temperatures[0], rows), name=str(length), context=length))
    if spec.calibration_samples and confident:
        rows = _calibration_questions(draft, placement.scratch, spec.calibration_samples, fits)
        found += [_extra("calibration", temperature, rows) for temperature in spec.temperatures if rows]
    return found


def alike(shards: Sequence[Shard], most: int) -> list[list[int]]:
    """Return the numbers of the shards in order, those together that are decoded as one.

    Small benchmarks leave places of a batch empty. What is decoded as one is lost together where a run is killed: no
    more than a whole shard has.

    Args:
        shards: of an evaluation.
        most: questions that are decoded as one.
    """
    found: list[list[int]] = []
    for number, shard in enumerate(shards):
        group = [shards[each] for each in found[-1]] if found else []
        joins = group and shard.role == "benchmark" == group[0].role and shard.temperature == group[0].temperature
        if joins and sum(len(each.questions) for each in (*group, shard)) <= most:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def _questions(spec: EvaluateSpec, benchmark: Benchmark, placement: Placement) -> list[BenchmarkQuestion]:
    """Return the questions of a benchmark that the spec asks.

    Raises:
        SourceError: the benchmark has no location on this machine, or cannot be read.
    """
    location = placement.locations.get(benchmark.digest)
    if location is None and not benchmark.digest.startswith(HUB):
        raise SourceError(
            f"benchmark {benchmark.name} ({benchmark.digest}) has no location on this machine; give --benchmarks-dir"
        )
    return read_questions(benchmark, location or "", spec.samples, spec.seed)


def spread(
    asked: Mapping[str, list[BenchmarkQuestion]],
    count: int,
    wanted: Callable[[BenchmarkQuestion], bool] = lambda _: True,
) -> list[BenchmarkQuestion]:
    """Return so many of the wanted questions, at most, taken in turn from all benchmarks."""
    longest = max((len(rows) for rows in asked.values()), default=0)
    in_turn = (rows[place] for place in range(longest) for rows in asked.values() if place < len(rows))
    return list(islice(filter(wanted, in_turn), count))


def _calibration_questions(
    draft: Artifact, scratch: Path, count: int, wanted: Callable[[BenchmarkQuestion], bool] = lambda _: True
) -> list[BenchmarkQuestion]:
    """Return wanted prompts of the calibration split that the draft descends from; none where those are gone."""
    try:
        prompts = _ancestor(draft, ("target_cache", "answers", "prompts"), scratch)
    except (NotPublishedError, KeyError):
        return []
    held_out = (
        BenchmarkQuestion(question_id=f"calibration/{row['id']}", turns=(user_texts(row)[0],))
        for row in published_prompts(prompts)
        if row["split"] == "calibration"
    )
    return list(islice(filter(wanted, held_out), count))


def _ancestor(artifact: Artifact, kinds: tuple[str, ...], scratch: Path) -> Artifact:
    for kind in kinds:
        artifact = open_artifact(artifact.store, artifact.manifest.inputs[kind], scratch)
    return artifact


def _extra(role: ShardRole, temperature: float, rows: list[BenchmarkQuestion]) -> Shard:
    return Shard(role=role, name=role, temperature=temperature, questions=tuple(rows))

"""What is asked: questions of the benchmarks, and what the evaluation decoded of them."""

from collections.abc import Sequence

from deepspec.artifacts import Artifact
from deepspec.chat.template import ChatTemplate
from deepspec.errors import SpecError
from deepspec.formats.benchmarks import Benchmark
from deepspec.formats.questions import Question, read_questions
from deepspec.formats.scores import decoded_of, trace_rows
from deepspec.placement import Placement
from deepspec.rounds.decoded import Decoded


def questions(
    benchmarks: Sequence[Benchmark], placement: Placement, count: int | None, seed: int
) -> dict[str, Question]:
    """Return id -> question, taken in turn from all benchmarks: of each a seeded choice, or all of its default size."""
    rows = [read_questions(each, placement.locations.get(each.digest, each.digest), count, seed) for each in benchmarks]
    longest = max(len(each) for each in rows)
    in_turn = [each[place] for place in range(longest) for each in rows if place < len(each)]
    return {each.question_id: each for each in in_turn}


def prompt_ids(template: ChatTemplate, question: Question) -> list[int]:
    """Return the tokens by which the target is asked the first turn of a question."""
    return template.prompt_ids([{"role": "user", "content": question.turns[0]}])


def decoded(scores: Artifact, temperature: float) -> list[Decoded]:
    """Return what the evaluation decoded at a temperature."""
    rows = trace_rows(scores)
    return [decoded_of(row) for row in rows if (row["role"], row["temperature"]) == ("benchmark", temperature)]


def first_turns(
    scores: Artifact, placement: Placement, template: ChatTemplate, count: int
) -> list[tuple[list[int], Decoded]]:
    """Return prompts of first turns and what the evaluation made of them at temperature 0, from all benchmarks in turn.

    Raises:
        SpecError: it decoded nothing at temperature 0, or with thinking on.
        SourceError: a benchmark is not where the placement says.
    """
    told = scores.manifest.spec
    benchmarks = [Benchmark.model_validate(each) for each in told["benchmarks"]]
    here = {each.sample_id.removesuffix("#0"): each for each in decoded(scores, 0.0) if each.rounds}
    if not here or told["thinking"]:
        raise SpecError(f"{scores.prefix} has nothing that was decoded at temperature 0 without thinking")
    asked = questions(benchmarks, placement, told["samples"], told["seed"])
    chosen = [each for name, each in asked.items() if name in here][:count]
    return [(prompt_ids(template, each), here[each.question_id]) for each in chosen]

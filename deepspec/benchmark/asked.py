"""What is asked: questions of the benchmarks, and what the evaluation decoded of them."""

from deepspec.artifacts import Artifact, Placement
from deepspec.benchmark.spec import BenchmarkSpec
from deepspec.decoding.pair import Pair
from deepspec.decoding.results import Decoded
from deepspec.formats.conversations import published_rows
from deepspec.formats.questions import Question, read_questions
from deepspec.formats.scores import decoded_of


def questions(spec: BenchmarkSpec, placement: Placement, count: int | None) -> dict[str, Question]:
    """Return id -> question, taken in turn from all benchmarks: of each a seeded choice, or all of its default size."""
    rows = [
        read_questions(each, placement.locations.get(each.digest, each.digest), count, spec.seed)
        for each in spec.benchmarks
    ]
    longest = max(len(each) for each in rows)
    in_turn = [each[place] for place in range(longest) for each in rows if place < len(each)]
    return {each.question_id: each for each in in_turn}


def prompt_ids(pair: Pair, question: Question) -> list[int]:
    """Return the tokens by which the target is asked the first turn of a question."""
    return pair.target.template.prompt_ids([{"role": "user", "content": question.turns[0]}])


def decoded(scores: Artifact, temperature: float) -> list[Decoded]:
    """Return what the evaluation decoded at a temperature."""
    rows = published_rows(scores)
    return [decoded_of(row) for row in rows if (row["role"], row["temperature"]) == ("benchmark", temperature)]

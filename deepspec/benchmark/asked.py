"""What is asked: questions of the benchmarks, and what the evaluation decoded of them."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from deepspec.artifacts import Artifact
from deepspec.chat.template import ChatTemplate
from deepspec.errors import SpecError
from deepspec.formats.benchmarks import Benchmark
from deepspec.formats.questions import BenchmarkQuestion, read_questions
from deepspec.formats.scores import decoded_of, trace_rows
from deepspec.placement import Placement
from deepspec.rounds.decoded import Decoded
from deepspec.serving.check import DecodedPrompt

HEAD = 8
"""Tokens at the beginning of a prompt that are kept where its middle is cut."""
BEGINNING = 2
"""Tokens by which an answer is told from another target's."""


def questions(
    benchmarks: Sequence[Benchmark], placement: Placement, count: int | None, seed: int
) -> dict[str, BenchmarkQuestion]:
    """Return id -> question, taken in turn from all benchmarks: of each a seeded choice, or all of its default size."""
    rows = [read_questions(each, placement.locations.get(each.digest, each.digest), count, seed) for each in benchmarks]
    longest = max(len(each) for each in rows)
    in_turn = [each[place] for place in range(longest) for each in rows if place < len(each)]
    return {each.question_id: each for each in in_turn}


def prompt_ids(template: ChatTemplate, question: BenchmarkQuestion) -> list[int]:
    """Return the tokens by which the target is asked the first turn of a question."""
    return template.prompt_ids([{"role": "user", "content": question.turns[0]}])


def decoded(scores: Artifact, temperature: float) -> list[Decoded]:
    """Return what the evaluation decoded at a temperature."""
    rows = trace_rows(scores)
    return [decoded_of(row) for row in rows if (row["role"], row["temperature"]) == ("benchmark", temperature)]


def first_turns(scores: Artifact, placement: Placement, template: ChatTemplate, count: int) -> list[DecodedPrompt]:
    """Return prompts of first turns and what the evaluation made of them at temperature 0, from all benchmarks in turn.

    Raises:
        SpecError: it decoded nothing at temperature 0, or with thinking on.
        SourceError: a benchmark is not where the placement says.
    """
    told = scores.manifest.spec
    here = {each.sample_id.removesuffix("#0"): each for each in decoded(scores, 0.0) if each.rounds}
    if not here or told["thinking"]:
        raise SpecError(f"{scores.prefix} has nothing that was decoded at temperature 0 without thinking")
    asked = asked_questions(scores, placement)
    chosen = [each for name, each in asked.items() if name in here][:count]
    return [_known(template, each, here[each.question_id]) for each in chosen]


def asked_questions(scores: Artifact, placement: Placement) -> dict[str, BenchmarkQuestion]:
    """Return id -> question of an evaluation.

    Raises:
        SourceError: a benchmark is not where the placement says.
    """
    told = scores.manifest.spec
    benchmarks = [Benchmark.model_validate(each) for each in told["benchmarks"]]
    return questions(benchmarks, placement, told["samples"], told["seed"])


def filled(template: ChatTemplate, asked: Sequence[BenchmarkQuestion], length: int, seed: int) -> list[list[int]]:
    """Return the prompts of questions, each made exactly so long: other questions' texts stand before its own.

    A question that is longer by itself loses tokens of its middle.

    Args:
        template: of the target.
        asked: at least one question.
        length: tokens of each prompt.
        seed: of the order in which texts are taken.
    """
    order = np.random.default_rng(seed).permutation(len(asked))
    texts = [asked[place].turns[0] for place in order]
    return [_exactly(template, texts[place:] + texts[:place], each, length) for place, each in enumerate(asked)]


def _exactly(template: ChatTemplate, texts: Sequence[str], question: BenchmarkQuestion, length: int) -> list[int]:
    before: list[str] = []
    ids = prompt_ids(template, question)
    for text in cycle(texts):
        if len(ids) >= length:
            break
        before = [text, *before] * 2 if len(ids) < length // 4 else [text, *before]
        content = "\n\n".join([*before, question.turns[0]])
        ids = template.prompt_ids([{"role": "user", "content": content}])
    return ids[:HEAD] + ids[len(ids) - (length - HEAD) :]


def _known(template: ChatTemplate, question: BenchmarkQuestion, found: Decoded) -> DecodedPrompt:
    return DecodedPrompt(
        prompt=prompt_ids(template, question),
        decoded=found,
        begins=template.decoded(found.tokens[:BEGINNING]),
        text=template.decoded(found.tokens),
    )

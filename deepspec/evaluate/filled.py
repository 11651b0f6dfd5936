"""Questions behind a long context: other material fills the prompt to a length, and the question stands at its end.

Two kinds of material, in turn: `texts`, other questions as numbered notes; and `records`, lines of words and numbers
that no question asks for. What they say is a function of the seed, the question and the length.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Literal

from deepspec.formats.questions import BenchmarkQuestion

MaterialKind = Literal["texts", "records"]
KINDS: tuple[MaterialKind, ...] = ("texts", "records")

INTRO = "Here are some notes. They need no answer.\n\n"
OUTRO = "\n\nThis is what I want to know:\n"

_WORDS = (
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty", "knoll", "lagoon",
    "meadow", "nook", "oasis", "prairie", "quarry", "ridge", "summit", "tundra", "upland", "valley", "wharf", "yard",
)  # fmt: skip


def kind_of(place: int, benchmarks: int) -> MaterialKind:
    """Return the kind of material before a question, by its place among those taken in turn from some benchmarks."""
    return KINDS[(place + place // benchmarks) % len(KINDS)]


def filled(
    question: BenchmarkQuestion,
    kind: MaterialKind,
    texts: Sequence[str],
    length: int,
    tokens: Callable[[str], int],
    seed: int,
) -> BenchmarkQuestion:
    """Return a question's first turn, its prompt filled with whole lines of material to no more than a length.

    Args:
        question: of one turn or more.
        kind: of material.
        texts: that notes are taken from; the question's own is left out.
        length: of the prompt, in tokens.
        tokens: text of a first turn -> tokens of its prompt.
        seed: of the choice of material.
    """
    first = question.turns[0]
    generator = Random(f"{seed}/{length}/{question.question_id}")
    source = _records(generator) if kind == "records" else _notes(generator, [each for each in texts if each != first])
    lines: list[str] = []

    def fits(count: int) -> bool:
        lines.extend(islice(source, count - len(lines)) if count > len(lines) else ())
        return tokens(_joined(lines[:count], first)) <= length

    turns = (_joined(lines[: _most(fits)], first),)
    return replace(question, question_id=f"context-{length}/{kind}/{question.question_id}", turns=turns)


def _joined(lines: Sequence[str], question: str) -> str:
    return INTRO + "\n".join(lines) + OUTRO + question if lines else question


def _most(fits: Callable[[int], bool]) -> int:
    """Return the largest count that fits, by doubling and halving; 0 where not even one does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _records(generator: Random) -> Iterator[str]:
    while True:
        one, other = generator.choice(_WORDS), generator.choice(_WORDS)
        yield f"{one}-{other} {generator.randrange(1000)}: {generator.randrange(10_000)}"


def _notes(generator: Random, texts: Sequence[str]) -> Iterator[str]:
    """Yield texts in a random order, again and again, with a number before each; records where there are none."""
    number = 0
    while texts:
        for text in generator.sample(texts, len(texts)):
            number += 1
            yield f"{number}. {text}"
    yield from _records(generator)

"""From questions to decoded turns: each turn is asked with the answers given before it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepspec.decoding.decode import Decoder
from deepspec.formats.questions import BenchmarkQuestion
from deepspec.rounds.decoded import Decoded, Prompt
from deepspec.target.load import Target


@dataclass(kw_only=True, slots=True)
class Dialogue:
    """A question on its way through its turns."""

    question: BenchmarkQuestion
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: list[Decoded] = field(default_factory=list)
    too_long: int = 0
    """Turns that were not asked, since prompt and answer would not fit."""


def ask(
    questions: Iterable[BenchmarkQuestion],
    target: Target,
    decoder: Decoder,
    *,
    room: int,
    thinking: bool,
    tell: Callable[[], None],
) -> list[Dialogue]:
    """Return the questions with all their turns decoded, in the order given.

    Args:
        questions: to ask.
        target: reads the dialogue with its chat template.
        decoder: continues prompts.
        room: most tokens that a prompt may have; a longer turn ends its dialogue.
        thinking: whether a template that can switch thinking leaves it on.
        tell: called when a question has had its last turn.
    """
    dialogues = [Dialogue(question=question) for question in questions]
    for turn in range(max((len(each.question.turns) for each in dialogues), default=0)):
        for dialogue in _ask_turn(
            [each for each in dialogues if _goes_on(each, turn)], target, decoder, room, thinking
        ):
            if not _goes_on(dialogue, turn + 1):
                tell()
    return dialogues


def _goes_on(dialogue: Dialogue, turn: int) -> bool:
    return turn < len(dialogue.question.turns) and not dialogue.too_long


def _ask_turn(
    dialogues: Sequence[Dialogue], target: Target, decoder: Decoder, room: int, thinking: bool
) -> Iterator[Dialogue]:
    waiting: dict[str, Dialogue] = {}
    prompts = []
    for dialogue in dialogues:
        turn = len(dialogue.turns)
        asked = [*dialogue.messages, {"role": "user", "content": dialogue.question.turns[turn]}]
        ids = target.template.prompt_ids(asked, thinking=thinking)
        if len(ids) > room:
            dialogue.too_long = len(dialogue.question.turns) - turn
            yield dialogue
            continue
        dialogue.messages = asked
        sample_id = f"{dialogue.question.question_id}#{turn}"
        waiting[sample_id] = dialogue
        prompts.append(Prompt(sample_id=sample_id, ids=ids))
    for decoded in decoder.decode(prompts):
        dialogue = waiting[decoded.sample_id]
        dialogue.turns.append(decoded)
        dialogue.messages.append({"role": "assistant", "content": _text(target, decoded)})
        yield dialogue


def _text(target: Target, decoded: Decoded) -> str:
    text: str = target.tokenizer.decode(decoded.tokens, skip_special_tokens=True)
    return text

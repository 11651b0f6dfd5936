"""Which questions a target has room for: prompt, answer and a last proposal have to lie within its positions."""

from collections.abc import Sequence
from pathlib import Path

from deepspec import families
from deepspec.chat.template import ChatTemplate
from deepspec.errors import SourceError, SpecError
from deepspec.formats.questions import BenchmarkQuestion
from deepspec.target.load import load_template


class Room:
    """What a target has room for beside an answer.

    Args:
        positions: that the target reads.
        answer: tokens of an answer, at most.
        slots: tokens of a proposal.
        stage: whose setting `max_new_tokens` is, for messages.
        template: renders questions.
        thinking: whether a template that can switch thinking leaves it on.

    Raises:
        SpecError: there is no room for any prompt.
    """

    def __init__(
        self, positions: int, answer: int, slots: int, *, stage: str, template: ChatTemplate, thinking: bool = False
    ) -> None:
        """Leave the answer and a proposal their positions."""
        self.most = positions - answer - slots - 1
        """Most tokens that a prompt may have."""
        self._told = (
            f"the target reads {positions} tokens, {answer} of them are kept for the answer "
            f"({stage}.max_new_tokens) and {slots + 1} for a round"
        )
        self._advice = f"lower {stage}.max_new_tokens"
        self._template, self._thinking = template, thinking
        self._lengths: dict[str, int] = {}
        if self.most < 1:
            raise SpecError(f"{self._told}: no prompt has room; {self._advice}")

    def fits(self, question: BenchmarkQuestion) -> bool:
        """Return whether the first turn of a question has room."""
        return self.length(question) <= self.most

    def tokens(self, text: str) -> int:
        """Return the tokens by which the target is asked a first turn of a text."""
        return len(self._template.prompt_ids([{"role": "user", "content": text}], thinking=self._thinking))

    def length(self, question: BenchmarkQuestion) -> int:
        """Return the tokens by which the target is asked the first turn of a question."""
        found = self._lengths.get(question.question_id)
        if found is None:
            found = self.tokens(question.turns[0])
            self._lengths[question.question_id] = found
        return found

    def left_out(self, benchmark: str, questions: Sequence[BenchmarkQuestion]) -> int:
        """Return how many questions of a benchmark have no room.

        Raises:
            SourceError: none of them has, so that nothing would be measured.
        """
        lengths = sorted(map(self.length, questions))
        count = sum(length > self.most for length in lengths)
        if count == len(lengths):
            raise SourceError(
                f"benchmark {benchmark}: none of its {count} questions can be asked, their prompts have {lengths[0]} "
                f"to {lengths[-1]} tokens: {self._told}, which leaves {self.most}; {self._advice}, or leave the "
                "benchmark out (dataset.benchmarks)"
            )
        return count


def room_of(folder: Path, answer: int, slots: int, *, stage: str, thinking: bool = False) -> Room:
    """Return what the target in a folder has room for, without loading its weights; arguments as those of `Room`.

    Raises:
        SpecError: there is no room for any prompt.
        TargetError: its config or tokenizer cannot be read.
    """
    positions = families.read_folder(folder).max_positions
    return Room(positions, answer, slots, stage=stage, template=load_template(folder), thinking=thinking)

"""Conversations as the target reads them, and the one rule of what is supervised.

Supervised are exactly the tokens that the target generated, each with exactly the context that it had when it
generated them: the prompt of a turn is the rendered conversation before it with the generation prompt; the answer is
what the engine said it generated, or what the template adds to the prompt for that turn, through the stop token.
What the template puts around an answer is context. docs/formats/loss_mask.md tells it with examples.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

from deepspec.chat.answered import Answered, ChatMessage, name_of, read_answered
from deepspec.chat.clock import DATE, Clock
from deepspec.chat.generated import TurnReader
from deepspec.chat.rendering import Renderer, TemplateTold
from deepspec.errors import RowError, TargetError
from deepspec.lines.bad_rows import one_row


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sequence to train on."""

    sample_id: str
    input_ids: list[int]
    loss_mask: list[bool]
    """True exactly on tokens that the target generated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """One conversation as samples."""

    samples: tuple[Sample, ...]
    """One, or several where a later turn was generated in a context that does not continue the earlier one."""
    turns: int
    """Generated turns."""
    drifted: int
    """Turns whose token ids, as the engine gave them, differ from what re-tokenising their text gives."""
    truncated: int
    """Turns that were cut by the token limit: they have no stop token."""
    date_assumed: bool
    """Whether the template reads the clock and the row does not say which date it was given."""


class ChatTemplate:
    """A target's tokenizer with its chat template.

    Args:
        tokenizer: a transformers tokenizer.
        stop_ids: tokens that end an answer.
        name: the target, for messages.
        vocab_size: rows of its embedding; None: not known, so ids are not held against it.

    Raises:
        TargetError: there is no chat template.
    """

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], name: str, vocab_size: int | None = None) -> None:
        """Refuse a target that cannot read a conversation."""
        if not tokenizer.chat_template:
            advice = "give one as chat_template in the target's preset, or take the instruct version of the model"
            raise TargetError(f"target {name} has no chat template; {advice}")
        self._renderer = Renderer(tokenizer)
        self._turns = TurnReader(self._renderer, stop_ids, name, vocab_size)

    def prompt_ids(
        self,
        messages: Sequence[ChatMessage],
        *,
        thinking: bool = False,
        tools: Sequence[ChatMessage] | None = None,
        switches: Mapping[str, Any] | None = None,
        day: date = DATE,
    ) -> list[int]:
        """Return the token ids that the target is given to answer a conversation.

        Args:
            messages: the turns so far; nothing is added to them.
            thinking: whether a template that can switch thinking leaves it on.
            tools: tool descriptions, as the conversation has them.
            switches: what else the template is told.
            day: the date that a template which reads the clock is given.

        Raises:
            RowError: arguments of a tool call are no JSON object (`bad_tools`).
            Exception: whatever the template raises.
        """
        told = TemplateTold(switches={**(switches or {}), "enable_thinking": thinking}, tools=tools, day=day)
        return self._renderer.prompt_ids(messages, told)

    def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return self._renderer.decoded(ids)

    @property
    def clock(self) -> Clock | None:
        """Return how the template reads the clock; None where it does not."""
        return self._renderer.clock

    @property
    def stop_id(self) -> int:
        """Return the stop token with which the template ends an answer.

        Raises:
            TargetError: it ends answers with no token at which the target stops.
        """
        return self._turns.endings.of_text

    def render(self, row: Mapping[str, Any]) -> Rendered:
        """Return the samples of one answered conversation.

        Args:
            row: a row of answers of status `success`, as docs/formats/answers.md has it.

        Raises:
            RowError: it cannot be trained on; docs/formats/loss_mask.md lists the reasons.
        """
        name = name_of(row)
        try:
            with one_row("template_refuses"):
                return self._rendered(name, read_answered(row))
        except RowError as error:
            raise RowError(error.reason, f"sample {name}: {error}") from error

    def _rendered(self, name: str, answered: Answered) -> Rendered:
        sequences: list[_Sequence] = []
        drifted = prompt_tokens = 0
        for number, turn in enumerate(answered.turns, 1):
            with _named(number, len(answered.turns)):
                prompt = self._turns.prompt(answered, turn)
                answer, drift = self._turns.answer(answered, turn, prompt)
            drifted += drift
            prompt_tokens += len(prompt.ids)
            if not sequences or not sequences[-1].continues_in(prompt.ids):
                sequences.append(_Sequence())
            sequences[-1].extend(prompt.ids, answer)
        _check_prompts(prompt_tokens, answered.prompt_tokens)
        names = [name] if len(sequences) == 1 else [f"{name}:{n}" for n in range(len(sequences))]
        samples = tuple(sequence.sample(each) for each, sequence in zip(names, sequences, strict=True))
        _check_masks(samples)
        for sample in samples if self._turns.may_exceed else ():
            self._turns.check_range(sample.input_ids)
        return Rendered(
            samples=samples,
            turns=len(answered.turns),
            drifted=drifted,
            truncated=sum(turn.truncated for turn in answered.turns),
            date_assumed=answered.day is None and self.clock is not None,
        )


class _Sequence:
    """Tokens and mask that grow turn by turn."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._mask: list[bool] = []

    def continues_in(self, prompt: list[int]) -> bool:
        return prompt[: len(self._ids)] == self._ids

    def extend(self, prompt: list[int], answer: list[int]) -> None:
        self._mask += [False] * (len(prompt) - len(self._ids)) + [True] * len(answer)
        self._ids = [*prompt, *answer]

    def sample(self, sample_id: str) -> Sample:
        return Sample(sample_id=sample_id, input_ids=self._ids, loss_mask=self._mask)


@contextmanager
def _named(turn: int, turns: int) -> Iterator[None]:
    """Let an error of one of several turns say which."""
    try:
        yield
    except RowError as error:
        raise error if turns == 1 else RowError(error.reason, f"turn {turn} of {turns}: {error}") from error


def _check_prompts(rendered: int, counted: int) -> None:
    if counted and counted != rendered:
        told = f"the engine counted {counted} tokens of prompts and the target's own template gives {rendered}"
        raise RowError("prompt_differs", f"{told}: the engine answered something else")


def _check_masks(samples: Sequence[Sample]) -> None:
    if not any(any(sample.loss_mask) for sample in samples):
        raise RowError("nothing_supervised", "no token of it was generated by the target")
    if any(all(sample.loss_mask) for sample in samples):
        raise RowError("all_supervised", "every token is supervised; its prompt renders to nothing")

"""Conversations as the target reads them, and the one rule of what is supervised.

Supervised are exactly the tokens that the target generated, each with exactly the context that it had when it
generated them: the prompt of a turn is the rendered conversation before it with the generation prompt; the answer is
what the engine said it generated, or what the template adds to the prompt for that turn, through the stop token.
What the template puts around an answer is context. docs/formats/loss_mask.md tells it with examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

from deepspec.errors import RowError, TargetError
from deepspec.formats.bad_rows import one_row
from deepspec.target.answered import Answered, Message, Turn, name_of, read_answered
from deepspec.target.clock import DATE, Clock
from deepspec.target.faithful import Signs, before_stop, generated_text, marks_in, unrepeated
from deepspec.target.rendering import Renderer, Told
from deepspec.target.tool_calls import name_of as name_of_call


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
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer)
        self._stop_ids = stop_ids
        self._name = name
        self._vocab_size = vocab_size

    def prompt_ids(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool = False,
        tools: Sequence[Message] | None = None,
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
        told = Told(switches={**(switches or {}), "enable_thinking": thinking}, tools=tools, day=day)
        return self._renderer.ids(self._renderer.text(messages, told, answer_next=True))

    @property
    def clock(self) -> Clock | None:
        """Return how the template reads the clock; None where it does not."""
        return self._renderer.clock

    @cached_property
    def stop_id(self) -> int:
        """Return the stop token with which the template ends an answer.

        Raises:
            TargetError: it ends answers with no token at which the target stops.
        """
        probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        text = self._renderer.text(probe, Told(switches={"enable_thinking": False}), answer_next=False)
        stops = [token for token in self._renderer.ids(text) if token in self._stop_ids]
        if not stops:
            known = ", ".join(self._tokenizer.convert_ids_to_tokens(sorted(self._stop_ids)))
            raise TargetError(
                f"target {self._name}: its chat template ends an answer with none of its stop tokens ({known}); "
                "name the token that does in stop_tokens of the target's preset"
            )
        return stops[-1]

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
        for turn in answered.turns:
            prompt = self._row_text(answered, answered.messages[: turn.index], answer_next=True)
            answer, drift = self._answer(answered, turn, prompt)
            drifted += drift
            prompt_tokens += len(prompt.ids)
            if not sequences or not sequences[-1].continues_in(prompt.ids):
                sequences.append(_Sequence())
            sequences[-1].extend(prompt.ids, answer)
        _check_prompts(prompt_tokens, answered.prompt_tokens)
        names = [name] if len(sequences) == 1 else [f"{name}:{n}" for n in range(len(sequences))]
        samples = tuple(sequence.sample(each) for each, sequence in zip(names, sequences, strict=True))
        _check_masks(samples)
        self._check_ids(samples)
        return Rendered(
            samples=samples,
            turns=len(answered.turns),
            drifted=drifted,
            truncated=sum(turn.truncated for turn in answered.turns),
            date_assumed=answered.day is None and self.clock is not None,
        )

    def _row_text(self, answered: Answered, messages: Sequence[Message], *, answer_next: bool) -> "_Text":
        told = Told(switches=answered.switches, tools=answered.tools, day=answered.day or DATE)
        try:
            with one_row("template_refuses"):
                text = self._renderer.text(messages, told, answer_next=answer_next)
                return _Text(text, self._renderer.ids(text))
        except RowError as error:
            if error.reason != "template_refuses":
                raise
            told_by = f"the chat template of {self._name} refuses it: {error}"
            raise RowError(error.reason, f"{told_by}; drop the row in prepare") from error

    def _answer(self, answered: Answered, turn: Turn, prompt: "_Text") -> tuple[list[int], bool]:
        """Return the tokens generated in one turn, and whether re-tokenising their text gives others."""
        given = self._given(turn)
        try:
            again = self._retokenised(answered, turn, prompt)
        except RowError:
            if given is None:
                raise
            again = None
        if given is None:
            return again or [], turn.token_ids is not None
        if not turn.truncated and (not given or given[-1] not in self._stop_ids):
            given = [*given, again[-1] if again else self.stop_id]
        return given, again is not None and again != given

    def _given(self, turn: Turn) -> list[int] | None:
        """Return the engine's token ids of a turn; None where there are none, or where they do not spell the answer.

        Some engines lose tokens inside multi-token characters.
        """
        if turn.token_ids is None:
            return None
        self._check_range(turn.token_ids)
        text = self._renderer.decoded(turn.token_ids)
        parts = [turn.content, turn.reasoning or "", *map(name_of_call, turn.calls)]
        return turn.token_ids if all(part.strip() in text for part in parts) else None

    def _retokenised(self, answered: Answered, turn: Turn, prompt: "_Text") -> list[int]:
        """Return the tokens of an answer as its text gives them, through the stop token.

        Raises:
            RowError: the text does not tell what the target generated.
        """
        _check_whole(turn)
        plain = not turn.calls and turn.reasoning is None
        if plain and any(mark in turn.content for mark in self._marks):
            return self._literal(turn, prompt)
        reasoning = {} if turn.reasoning is None else {"reasoning_content": turn.reasoning}
        messages = [*answered.messages[: turn.index], {**turn.message, **reasoning}]
        rendered = self._row_text(answered, messages, answer_next=False)
        if rendered.ids[: len(prompt.ids)] != prompt.ids or not rendered.text.startswith(prompt.text):
            raise self._rewritten("renders an answered turn unlike its generation prompt")
        added = rendered.text[len(prompt.text) :]
        text = generated_text(added, turn, self._signs)
        if text is None:
            raise self._unfaithful()
        if text != before_stop(added, self._signs):
            return self._body(self._renderer.ids(prompt.text + text), prompt)
        body = self._body(rendered.ids, prompt)
        if turn.truncated:
            return body
        end = rendered.ids[len(prompt.ids) + len(body) :]
        return [*body, end[0] if end else self.stop_id]

    def _literal(self, turn: Turn, prompt: "_Text") -> list[int]:
        """Return the tokens of an answer that holds its reasoning: no template may split or strip it."""
        content = unrepeated(prompt.text, turn.content)
        if content is None:
            raise self._rewritten("has the prompt open the reasoning that the answer opens again")
        body = self._body(self._renderer.ids(prompt.text + content), prompt)
        return body if turn.truncated else [*body, self.stop_id]

    def _body(self, ids: list[int], prompt: "_Text") -> list[int]:
        """Return the tokens behind a prompt, up to a stop token.

        Raises:
            RowError: tokenised together, the two do not begin with the prompt (`template_rewrites`).
        """
        if ids[: len(prompt.ids)] != prompt.ids:
            raise self._rewritten("makes other tokens of its generation prompt once an answer follows")
        return list(takewhile(lambda token: token not in self._stop_ids, ids[len(prompt.ids) :]))

    def _rewritten(self, how: str) -> RowError:
        advice = "so the answer's tokens cannot be told; regenerate with token ids"
        return RowError("template_rewrites", f"the chat template of {self._name} {how}, {advice}")

    def _unfaithful(self) -> RowError:
        """Return the error of a rendered turn that is not the answer; that a template ends none is the target's."""
        stop = self._renderer.decoded([self.stop_id])
        return self._rewritten(f"renders an answered turn, up to {stop}, unlike the answer as given")

    @cached_property
    def _signs(self) -> Signs:
        return self._renderer.signs(self._stop_ids)

    @cached_property
    def _marks(self) -> Sequence[str]:
        return marks_in(self._renderer.source)

    def _check_ids(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self._check_range(sample.input_ids)

    def _check_range(self, ids: Sequence[int]) -> None:
        if not ids:
            return
        least, most = min(ids), max(ids)
        if least < 0 or (self._vocab_size is not None and most >= self._vocab_size):
            wanted = "" if self._vocab_size is None else f"; the embedding of {self._name} has {self._vocab_size} rows"
            raise RowError("token_out_of_range", f"it holds token id {least if least < 0 else most}{wanted}")


class _Text(NamedTuple):
    """Rendered text with its token ids."""

    text: str
    ids: list[int]


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


def _check_whole(turn: Turn) -> None:
    """Check that the text of an answer tells where the target stopped.

    Raises:
        RowError: it was cut before its content began, or inside a call, or has no content at all.
    """
    if turn.calls and turn.truncated:
        raise RowError("cut_in_call", "an answer was cut, and calls tools: where it was cut cannot be told without ids")
    if turn.reasoning is None or turn.content.strip() or turn.calls:
        return
    if turn.truncated:
        told = "an answer was cut before its reasoning ended, and no template can render that"
        raise RowError("cut_in_reasoning", f"{told}; ask for more tokens, or regenerate with token ids")
    told = "all of an answer was given as reasoning, none as content: whether the target ended it cannot be told"
    raise RowError("only_reasoning", f"{told}; serve the target with its own reasoning parser, or regenerate with ids")


def _check_prompts(rendered: int, counted: int) -> None:
    if counted and counted != rendered:
        told = f"the engine counted {counted} tokens of prompts and the target's own template gives {rendered}"
        raise RowError("prompt_differs", f"{told}: the engine answered something else")


def _check_masks(samples: Sequence[Sample]) -> None:
    if not any(any(sample.loss_mask) for sample in samples):
        raise RowError("nothing_supervised", "no token of it was generated by the target")
    if any(all(sample.loss_mask) for sample in samples):
        raise RowError("all_supervised", "every token is supervised; its prompt renders to nothing")

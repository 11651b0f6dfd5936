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
from typing import Any

from jinja2 import TemplateError

from deepspec.errors import RowError, SourceError, TargetError
from deepspec.target.clock import CODES, DATE, READS_CLOCK, Clock, clock_of, codes, frozen

TRUNCATED = "length"
"""Finish reason of an answer that was cut by the token limit: it has no stop token."""

Message = Mapping[str, Any]


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


class ChatTemplate:
    """A target's tokenizer with its chat template.

    Args:
        tokenizer: a transformers tokenizer.
        stop_ids: tokens that end an answer.
        name: the target, for messages.

    Raises:
        TargetError: there is no chat template.
    """

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], name: str) -> None:
        """Refuse a target that cannot read a conversation."""
        if not tokenizer.chat_template:
            advice = "give one as chat_template in the target's preset, or take the instruct version of the model"
            raise TargetError(f"target {name} has no chat template; {advice}")
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._name = name

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
        """
        told = {**(switches or {}), "enable_thinking": thinking}
        return self._ids(messages, told, tools, answer_next=True, day=day)

    @cached_property
    def clock(self) -> Clock | None:
        """Return how the template reads the clock; None where it does not."""

        def render(
            messages: Sequence[Message], tools: Sequence[Message] | None, variables: Mapping[str, Any], day: date
        ) -> str:
            told = {**variables, "enable_thinking": False, "add_generation_prompt": True}
            text: str = self._applied(messages, told, tools, day, tokenize=False)
            return text

        return clock_of("".join({self._text(None), self._text([{}])}), render)

    @cached_property
    def stop_id(self) -> int:
        """Return the stop token with which the template ends an answer.

        Raises:
            TargetError: it ends answers with no token at which the target stops.
        """
        probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        stops = [
            token
            for token in self._ids(probe, {"enable_thinking": False}, None, answer_next=False, day=DATE)
            if token in self._stop_ids
        ]
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
            row: a row of answers: id, messages, generated (indices of the turns that the target generated),
                finish_reasons and, where the engine gave them, token_ids; one of each per generated turn.

        Raises:
            SourceError: nothing is supervised, or everything is.
            RowError: the template cannot render the row (`template_refuses`, `template_rewrites`).
        """
        sequences: list[_Sequence] = []
        drifted = 0
        for turn, index in enumerate(row["generated"]):
            prompt = self._row_prompt(row, index)
            answer, drift = self._answer(row, turn, prompt)
            drifted += drift
            if not sequences or not sequences[-1].continues_in(prompt):
                sequences.append(_Sequence())
            sequences[-1].extend(prompt, answer)
        names = [row["id"]] if len(sequences) == 1 else [f"{row['id']}:{n}" for n in range(len(sequences))]
        samples = tuple(sequence.sample(name) for name, sequence in zip(names, sequences, strict=True))
        _check(row["id"], samples)
        return Rendered(samples=samples, turns=len(row["generated"]), drifted=drifted)

    def _row_prompt(self, row: Mapping[str, Any], index: int) -> list[int]:
        return self._row_ids(row, row["messages"][:index], answer_next=True)

    def _row_ids(self, row: Mapping[str, Any], messages: Sequence[Message], *, answer_next: bool) -> list[int]:
        try:
            switches = {**(row.get("chat_template_kwargs") or {}), "enable_thinking": row["thinking"]}
            day = date.fromisoformat(row["date"]) if "date" in row else DATE
            return self._ids(messages, switches, row.get("tools"), answer_next=answer_next, day=day)
        except TemplateError as error:
            reason = f"sample {row['id']}: the chat template of {self._name} refuses it: {error}"
            raise RowError("template_refuses", f"{reason}; drop the row in prepare") from error

    def _ids(
        self,
        messages: Sequence[Message],
        switches: Mapping[str, Any],
        tools: Sequence[Message] | None,
        *,
        answer_next: bool,
        day: date,
    ) -> list[int]:
        told = {**switches, "add_generation_prompt": answer_next}
        ids: list[int] = self._applied(messages, told, tools, day, tokenize=True)
        return ids

    def _applied(
        self,
        messages: Sequence[Message],
        told: Mapping[str, Any],
        tools: Sequence[Message] | None,
        day: date,
        *,
        tokenize: bool,
    ) -> Any:
        """Return what the template makes of messages, as text or as token ids; its clock stands at noon of a day."""
        template = self._text(tools)
        if READS_CLOCK in template:
            template, told = frozen(template), {**told, CODES: codes(day)}
        return self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=None if tools is None else [dict(tool) for tool in tools],
            chat_template=template,
            tokenize=tokenize,
            return_dict=False,
            **told,
        )

    def _text(self, tools: Sequence[Message] | None) -> str:
        """Return the template's text: of several, the one that transformers takes with or without tools."""
        text: str = self._tokenizer.get_chat_template(None, None if tools is None else list(tools))
        return text

    def _answer(self, row: Mapping[str, Any], turn: int, prompt: list[int]) -> tuple[list[int], bool]:
        """Return the tokens generated in one turn, and whether re-tokenising their text gives others."""
        truncated = row["finish_reasons"][turn] == TRUNCATED
        again = self._retokenised(row, turn, prompt, truncated)
        given = _given(row, turn)
        if given is not None and self._spells(given, row["messages"][row["generated"][turn]]):
            if not truncated and (not given or given[-1] not in self._stop_ids):
                given = [*given, self.stop_id]
            return given, again is not None and again != given
        if again is None:
            raise RowError(
                "template_rewrites",
                f"sample {row['id']}: the chat template of {self._name} renders an answered turn unlike its "
                "generation prompt, so the answer's tokens cannot be told; regenerate with token ids",
            )
        return again, given is not None

    def _spells(self, ids: list[int], message: Message) -> bool:
        """Return whether token ids give the answer's text: some engines lose tokens inside multi-token characters."""
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return (message["content"] or "").strip() in text

    def _retokenised(self, row: Mapping[str, Any], turn: int, prompt: list[int], truncated: bool) -> list[int] | None:
        """Return what the template adds to the prompt for the turn, through the stop token; None where it rewrites."""
        index = row["generated"][turn]
        answered = {**row["messages"][index], **_reasoning(row, index)}
        rendered = self._row_ids(row, [*row["messages"][:index], answered], answer_next=False)
        if rendered[: len(prompt)] != prompt:
            return None
        body = list(takewhile(lambda token: token not in self._stop_ids, rendered[len(prompt) :]))
        if truncated:
            return body
        end = rendered[len(prompt) + len(body) :]
        return [*body, end[0] if end else self.stop_id]


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


def _given(row: Mapping[str, Any], turn: int) -> list[int] | None:
    """Return the engine's token ids of one turn, where it gave them."""
    if "token_ids" not in row or row["token_ids"] is None:
        return None
    ids: list[int] | None = row["token_ids"][turn]
    return ids


def _reasoning(row: Mapping[str, Any], index: int) -> dict[str, str]:
    """Return the thinking text of one turn under the name that templates read."""
    if "reasoning" not in row or str(index) not in row["reasoning"]:
        return {}
    return {"reasoning_content": row["reasoning"][str(index)]}


def _check(row_id: str, samples: Sequence[Sample]) -> None:
    if not samples or not all(any(sample.loss_mask) for sample in samples):
        raise SourceError(f"sample {row_id}: no token of it was generated by the target")
    if any(all(sample.loss_mask) for sample in samples):
        raise SourceError(f"sample {row_id}: every token is supervised; its prompt renders to nothing")

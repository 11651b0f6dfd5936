"""What the target generated in one turn, as tokens: the engine's own, or those of the answer's text."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from deepspec.chat.answered import Answered, ChatMessage, Turn
from deepspec.chat.clock import DATE
from deepspec.chat.endings import Endings
from deepspec.chat.faithful import Signs, before_stop, generated_text, marks_in, unrepeated
from deepspec.chat.rendering import Renderer, TemplateTold
from deepspec.chat.tool_calls import name_of
from deepspec.errors import RowError
from deepspec.lines.bad_rows import one_row


class Text(NamedTuple):
    """Rendered text with its token ids."""

    text: str
    ids: list[int]


class TurnReader:
    """Reads the turns of rows with one target's template.

    Args:
        renderer: of the target.
        stop_ids: tokens that end an answer.
        name: the target, for messages.
        vocab_size: rows of its embedding; None: not known, so ids are not held against it.
    """

    def __init__(self, renderer: Renderer, stop_ids: frozenset[int], name: str, vocab_size: int | None) -> None:
        """Keep the arguments."""
        self._renderer = renderer
        self._stop_ids = stop_ids
        self._name = name
        self._vocab_size = vocab_size
        self.endings = Endings(renderer, stop_ids, name)

    @cached_property
    def _signs(self) -> Signs:
        return self._renderer.signs(self._stop_ids)

    @cached_property
    def _marks(self) -> Sequence[str]:
        return marks_in(self._renderer.source)

    def prompt(self, answered: Answered, turn: Turn) -> Text:
        """Return what the target was given to generate a turn.

        Raises:
            RowError: it cannot be rendered (`template_refuses`, `bad_tools`).
        """
        return self._rendered(answered, answered.messages[: turn.index], answer_next=True)

    def answer(self, answered: Answered, turn: Turn, prompt: Text) -> tuple[list[int], bool]:
        """Return the tokens generated in one turn, and whether re-tokenising their text gives others.

        Raises:
            RowError: neither the engine's ids nor the text tell them.
        """
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
            given = [*given, again[-1] if again else self._stop_behind(turn)]
        return given, again is not None and again != given

    def check_range(self, ids: Sequence[int]) -> None:
        """Check that token ids are rows of the embedding.

        Raises:
            RowError: one is not (`token_out_of_range`).
        """
        for token in (min(ids), max(ids)) if ids else ():
            if token < 0 or (self._vocab_size is not None and token >= self._vocab_size):
                rows = (
                    "" if self._vocab_size is None else f"; the embedding of {self._name} has {self._vocab_size} rows"
                )
                raise RowError("token_out_of_range", f"it holds token id {token}{rows}")

    @cached_property
    def may_exceed(self) -> bool:
        """Return whether text may have token ids that are no rows of the embedding."""
        return self._vocab_size is not None and self._renderer.last_id >= self._vocab_size

    def _given(self, turn: Turn) -> list[int] | None:
        """Return the engine's token ids of a turn; None where there are none, or where they do not spell the answer.

        Some engines lose tokens inside multi-token characters.
        """
        if turn.token_ids is None:
            return None
        self.check_range(turn.token_ids)
        text = self._renderer.decoded(turn.token_ids)
        parts = [turn.content, turn.reasoning or "", *map(name_of, turn.calls)]
        return turn.token_ids if all(part.strip() in text for part in parts) else None

    def _retokenised(self, answered: Answered, turn: Turn, prompt: Text) -> list[int]:
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
        rendered = self._rendered(answered, messages, answer_next=False)
        if not rendered.text.startswith(prompt.text):
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
        return [*body, end[0] if end else self._stop_behind(turn)]

    def _stop_behind(self, turn: Turn) -> int:
        return self.endings.of_calls if turn.calls else self.endings.of_text

    def _literal(self, turn: Turn, prompt: Text) -> list[int]:
        """Return the tokens of an answer that holds its reasoning: no template may split or strip it."""
        content = unrepeated(prompt.text, turn.content)
        if content is None:
            raise self._rewritten("has the prompt open the reasoning that the answer opens again")
        body = self._body(self._renderer.ids(prompt.text + content), prompt)
        return body if turn.truncated else [*body, self.endings.of_text]

    def _body(self, ids: list[int], prompt: Text) -> list[int]:
        """Return the tokens behind a prompt, up to a stop token.

        Raises:
            RowError: tokenised together, the two do not begin with the prompt (`template_rewrites`).
        """
        if ids[: len(prompt.ids)] != prompt.ids:
            raise self._rewritten("makes other tokens of its generation prompt once an answer follows")
        body = ids[len(prompt.ids) :]
        return body[: min((body.index(stop) for stop in self._stop_ids if stop in body), default=len(body))]

    def _rewritten(self, how: str) -> RowError:
        advice = "so the answer's tokens cannot be told; regenerate with token ids"
        return RowError("template_rewrites", f"the chat template of {self._name} {how}, {advice}")

    def _unfaithful(self) -> RowError:
        """Return the error of a rendered turn that is not the answer; that a template ends none is the target's."""
        stop = self._renderer.decoded([self.endings.of_text])
        return self._rewritten(f"renders an answered turn, up to {stop}, unlike the answer as given")

    def _rendered(self, answered: Answered, messages: Sequence[ChatMessage], *, answer_next: bool) -> Text:
        told = TemplateTold(switches=answered.switches, tools=answered.tools, day=answered.day or DATE)
        try:
            with one_row("template_refuses"):
                text = self._renderer.text(messages, told, answer_next=answer_next)
                return Text(text, self._renderer.ids(text))
        except RowError as error:
            if error.reason != "template_refuses":
                raise
            raise RowError(error.reason, f"the chat template of {self._name} refuses it: {error}") from error


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

"""Which stop token ends an answer in a target's chat template, behind text and behind calls of tools.

Most templates end each answer with one. Some end none: there the sign of whoever speaks next does (GLM: the user's
behind text, the tool's behind calls), which the target generates, and stops at.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

from deepspec.chat.answered import ChatMessage
from deepspec.chat.rendering import Renderer, TemplateTold
from deepspec.chat.tool_calls import probe_of_a_call
from deepspec.errors import RowError, TargetError
from deepspec.lines.bad_rows import one_row

_SAID = "probed words"
_USER: ChatMessage = {"role": "user", "content": "x"}
_ANSWER: ChatMessage = {"role": "assistant", "content": _SAID}
_RESULT: ChatMessage = {"role": "tool", "tool_call_id": "call00000", "name": "probe", "content": "z"}


class Endings:
    """The stop tokens with which one target's template ends answers.

    Args:
        renderer: of the target.
        stop_ids: tokens at which it stops.
        name: the target, for messages.
    """

    def __init__(self, renderer: Renderer, stop_ids: frozenset[int], name: str) -> None:
        """Keep the arguments."""
        self._renderer = renderer
        self._stop_ids = stop_ids
        self._name = name

    @cached_property
    def of_text(self) -> int:
        """Return the stop token behind text.

        Raises:
            TargetError: the template ends answers with no token at which the target stops.
        """
        for messages in ([_USER, _ANSWER], [_USER, _ANSWER, _USER]):
            text = self._renderer.text(messages, TemplateTold(switches={"enable_thinking": False}), answer_next=False)
            found = self._stop_in(text.rpartition(_SAID)[2])
            if found is not None:
                return found
        known = ", ".join(self._renderer.decoded([token]) for token in sorted(self._stop_ids))
        raise TargetError(
            f"target {self._name}: its chat template ends an answer with none of its stop tokens ({known}); "
            "name the token that does in stop_tokens of the target's preset"
        )

    @cached_property
    def of_calls(self) -> int:
        """Return the stop token behind calls of tools; that behind text where the template does not tell.

        Raises:
            TargetError: as `of_text`.
        """
        call, tools, argument = probe_of_a_call()
        told = TemplateTold(switches={"enable_thinking": False}, tools=tools)
        with suppress(RowError), one_row("template_refuses"):
            text = self._renderer.text([_USER, call, _RESULT], told, answer_next=False)
            _, said, behind = text.rpartition(argument)
            found = self._stop_in(behind) if said else None
            if found is not None:
                return found
        return self.of_text

    def _stop_in(self, text: str) -> int | None:
        """Return the first stop token in the text behind an answer."""
        ids: Sequence[int] = self._renderer.ids(text)
        return next((token for token in ids if token in self._stop_ids), None)

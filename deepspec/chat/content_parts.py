"""Contents of messages as templates read them: text, or a list of parts, as templates of models that see images do.

Engines find out which of the two a template reads and give it that (vLLM, SGLang and llama.cpp do). A template that
reads both is given text.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

from deepspec.chat.answered import ChatMessage
from deepspec.errors import RowError
from deepspec.lines.bad_rows import one_row

_SAID = "probed words"


def in_parts(message: ChatMessage) -> ChatMessage:
    """Return a message whose text is a part of type `text`; content that is none stays as it is."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def reads_parts(render: Callable[[Sequence[ChatMessage]], str]) -> bool:
    """Return whether a template must be given parts: of text it leaves out what a user says, or fails.

    Args:
        render: renders messages with the template, with contents as they stand there.
    """
    asked = {"role": "user", "content": _SAID}
    return not _shows(render, asked) and _shows(render, in_parts(asked))


def _shows(render: Callable[[Sequence[ChatMessage]], str], message: ChatMessage) -> bool:
    with suppress(RowError), one_row("template_refuses"):
        return _SAID in render([message])
    return False

"""Whether a rendered turn says what the answer says: a template may trim an answer, never rewrite it.

What a template puts before or behind an answer and the target must generate itself, a channel's name between special
tokens say, belongs to the answer: engines take special tokens out of the text that they give.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deepspec.chat.answered import Turn
from deepspec.chat.tool_calls import name_of, shown
from deepspec.messages.thinking import MARKERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """Special tokens of a target, as text."""

    stops: Collection[str]
    """Those that end an answer."""
    all: Collection[str]


def generated_text(added: str, turn: Turn, signs: Signs) -> str | None:
    """Return what the target generated of a rendered turn, without its stop token; None where that is not the answer.

    Args:
        added: what the template adds to the prompt for the turn.
        turn: the answer as given.
        signs: of the target.
    """
    body = before_stop(added, signs)
    if turn.calls:
        return body if _shows_calls(body, turn) else None
    end = _end(body, turn, signs)
    if end is None:
        return None
    return body[:end] if turn.truncated else body


def before_stop(text: str, signs: Signs) -> str:
    """Return a text up to the first stop token in it."""
    return text[: min((at for stop in signs.stops if (at := text.find(stop)) >= 0), default=len(text))]


def unrepeated(prompt: str, content: str) -> str | None:
    """Return a content that holds reasoning as it goes on behind a prompt; None where that cannot be told.

    Some servers put back the mark with which the prompt ends: the target did not generate it.
    """
    for opening, _ in MARKERS:
        if prompt.rstrip().endswith(opening) and content.lstrip().startswith(opening):
            put_back = prompt[prompt.rindex(opening) :]
            return content.removeprefix(put_back) if content.startswith(put_back) else None
    return content


def marks_in(template: str) -> Sequence[str]:
    """Return the marks of reasoning that the text of a template names: it may split or strip what holds one."""
    return [mark for pair in MARKERS for mark in pair if mark in template]


def _end(body: str, turn: Turn, signs: Signs) -> int | None:
    """Return where the content ends in a rendered turn; None where it is not there as given."""
    content = before_stop(turn.content, signs)
    core = content.strip()
    if not core and turn.truncated:
        return len(content) if body.startswith(content) else 0
    start = _behind_reasoning(body, turn)
    found = _without_signs(body, core, signs)
    if start is None or found is None or found - len(core) < start:
        return None
    if turn.reasoning is None and not _is_header(body[: found - len(core)].strip(), signs):
        return None
    spaces = content[len(content.rstrip()) :]
    return found + len(spaces) if body[found:].startswith(spaces) else found


def _behind_reasoning(body: str, turn: Turn) -> int | None:
    """Return where the reasoning that was given apart ends in a rendered turn; None where it is not there."""
    if turn.reasoning is None:
        return 0
    core = turn.reasoning.strip()
    at = body.find(core)
    return None if at < 0 else at + len(core)


def _without_signs(body: str, core: str, signs: Signs) -> int | None:
    """Return where a text ends that a rendered turn ends with, apart from spaces and special tokens; None: nowhere."""
    body = body.rstrip()
    while not body.endswith(core):
        sign = next((sign for sign in signs.all if body.endswith(sign)), None)
        if sign is None:
            return None
        body = body.removesuffix(sign).rstrip()
    return len(body)


def _is_header(text: str, signs: Signs) -> bool:
    """Return whether a text before an answer is none, or a header up to a special token that begins no reasoning.

    Where the prompt ends inside the header, the target writes its rest, as words of the same line.
    """
    if any(opening in text for opening, _ in MARKERS):
        return False
    begins = any(map(text.startswith, signs.all)) or "\n" not in text
    return not text or (begins and any(map(text.endswith, signs.all)))


def _shows_calls(body: str, turn: Turn) -> bool:
    content = turn.content.strip()
    _, found, rest = body.partition(content) if content else ("", "", body)
    if found != content or not shown(turn.calls, rest):  # text was said before the calls, wherever a template puts it
        return False
    if turn.reasoning is not None:
        return turn.reasoning.strip() in body
    before = body.partition(name_of(turn.calls[0]))[0].replace(turn.content.strip(), "")
    return not any(opening in before for opening, _ in MARKERS)

"""What a message of a user's row says, as text; whatever is no text, by a key, a part or a placeholder, is refused."""

import math
import re
from collections.abc import Mapping
from typing import Any

from deepspec.errors import RowError

MEDIA_KEYS = frozenset(
    kind + ending
    for kind in ("image", "video", "audio")
    for ending in ("", "s", "_url", "_urls", "_path", "_paths", "_file", "_files")
)
"""Keys of a row, a message or a part under which it holds what is no text."""

TEXT_PARTS = (None, "text", "input_text", "output_text")
"""Types of the parts of a message that are text; None: the part tells none."""

_MARK = (
    r"<\|?(?:start_of_|end_of_|begin_of_)?(?P<kind>image|img|video|audio|vision|speech)s?"
    r"(?:[ _-]?(?:\d+|pad|start|end|bos|eos|placeholder|token|soft_token|context))?\|?>"
)
_FIRST = re.compile(rf"\s*{_MARK}", re.IGNORECASE)
_LAST = re.compile(rf"{_MARK}\Z", re.IGNORECASE)
_LINE = re.compile(rf"^[ \t]*(?:{_MARK}[ \t]*)+$", re.IGNORECASE | re.MULTILINE)
_LONGEST_MARK = 64
_SHOWN = 120


def text_of(content: Any, role: str) -> str:
    """Return a message's text; only an assistant's may be empty (a slot), a tool's (no result), or a system's.

    Args:
        content: text, or a list of parts; None is no text.
        role: who says it.

    Raises:
        RowError: it is no text (`not_text`), or a user says nothing (`empty_message`).
    """
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise RowError("not_text", f"wanted text in a message of role {role!r}, got {type(content).__name__}")
    if role == "user" and not content.strip():
        raise RowError("empty_message", "a user message holds no text")
    if role in ("user", "tool") and (mark := placeholder(content)):
        raise RowError("not_text", f"a message holds {mark} in the place of what is no text; only text can be used")
    return content


def check_media(item: Mapping[str, Any]) -> None:
    """Check that a row, a message or a part has nothing but text beside its text.

    Raises:
        RowError: a key of `MEDIA_KEYS` holds something (`not_text`).
    """
    if MEDIA_KEYS.isdisjoint(item):
        return
    for key in sorted(MEDIA_KEYS & item.keys()):
        if _holds(item[key]):
            raise RowError("not_text", f"it holds something under {key!r}; only text can be used")


def placeholder(text: str) -> str:
    """Return the sign that stands for an image, a video or a sound in a text; "" where there is none.

    It stands alone on a line, or at the beginning or the end. A tag that is closed again (`<video>…</video>`) is
    markup that the text is about.
    """
    if "<" not in text:
        return ""
    found = (_FIRST.match(text), _LINE.search(text), _LAST.search(text.rstrip()[-_LONGEST_MARK:]))
    for mark in found:
        if mark is not None and f"</{mark['kind'].lower()}" not in text.lower():
            return mark.group().strip()
    return ""


def shown(value: Any) -> str:
    """Return a value as a message shows it: its beginning, however long it is."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        raise RowError("not_text", f"a message holds a part of type {type(part).__name__!r}; only text can be used")
    kind = part.get("type")
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise RowError("not_text", f"a message holds a part of type {shown(kind)}; only text can be used")
    check_media(part)
    return str(part["text"])


def _holds(value: Any) -> bool:
    """Return whether a value is more than the nothing of tables: null, NaN, "", or a list or object of these."""
    if isinstance(value, dict):
        return any(_holds(item) for item in value.values())
    if isinstance(value, list):
        return any(_holds(item) for item in value)
    return not (isinstance(value, float) and math.isnan(value)) and bool(value)

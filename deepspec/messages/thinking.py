"""Reasoning inside an answer's text: the one table of the marks that models put around it."""

from collections.abc import Sequence

MARKERS: Sequence[tuple[str, str]] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis", "<|channel|>final"),
    ("<|channel>thought", "<channel|>"),
)
"""What opens and what closes it: Qwen, DeepSeek and GLM first, Harmony (gpt-oss) and Gemma 4 last."""

_QUOTES = frozenset("`\"'")


def holds_reasoning(text: str) -> bool:
    """Return whether an answer's text holds the reasoning, too, as a server without a reasoning parser leaves it.

    It does where it begins with an opening mark, closed or cut off before that, and where it holds a closing mark
    without an opening one before it, because the prompt held that. A mark in quotes, or a pair of them later in the
    text, is spoken of and not meant.
    """
    begun = text.lstrip()
    return any(begun.startswith(opening) or _closes(begun, opening, closing) for opening, closing in MARKERS)


def _closes(text: str, opening: str, closing: str) -> bool:
    before, mark, after = text.partition(closing)
    if not mark or opening in before:
        return False
    return not (before[-1:] in _QUOTES and before[-1:] == after[:1])

"""Which of the published prompts are answered: all of them, or some of those that are held out."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator

from deepspec.artifacts import Artifact
from deepspec.messages.conversations import PromptRow, published_prompts


class _All:
    """All prompts of an artifact, read anew whenever they are asked for."""

    def __init__(self, prompts: Artifact) -> None:
        self._prompts = prompts

    def __iter__(self) -> Iterator[PromptRow]:
        return published_prompts(self._prompts)


def chosen_prompts(prompts: Artifact, held_out: int | None) -> Iterable[PromptRow]:
    """Return the prompts that are answered, the same and in the same order whenever they are gone through.

    Args:
        prompts: the published ones.
        held_out: so many of the validation split, at most, of every kind as often as chance has it; None: all.
    """
    if held_out is None:
        return _All(prompts)
    rows = (row for row in published_prompts(prompts) if row["split"] == "validation")
    return heapq.nsmallest(held_out, rows, key=_place)


def _place(row: PromptRow) -> str:
    """Return where a prompt stands among all of them: its id may begin with what it is about."""
    return hashlib.sha256(row["id"].encode()).hexdigest()

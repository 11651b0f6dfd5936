"""Rows that hold a benchmark's prompt: training on them would make its scores a lie."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from deepspec.errors import SourceError
from deepspec.lines.rows import is_text, read_rows
from deepspec.prepare.text import run_hashes, tokens

WRAPPING = 10
"""A run that more prompts share is wrapping ("reason step by step …"), not content, and is not counted."""

SHORTEST = 3
"""Prompts of fewer words ("Why?") say nothing about where a row came from."""


class BenchmarkPrompts:
    """An index of benchmark prompts.

    Args:
        prompts: their texts.
        run: words in the runs that are compared.
        overlap: share of a prompt's runs that makes a row a copy of it; of a short prompt it takes `run` runs, or all.
    """

    def __init__(self, prompts: Iterable[str], run: int, overlap: float) -> None:
        """Hash the prompts' runs."""
        self._run = run
        texts = [words for prompt in prompts if len(words := list(tokens(prompt))) >= SHORTEST]
        self._short = {" ".join(words) for words in texts if len(words) < run}
        runs = [set(run_hashes(words, run).tolist()) for words in texts if len(words) >= run]
        shared = Counter(value for one in runs for value in one)
        content = [_content(one, shared) for one in runs]
        self._prompt_of: dict[int, list[int]] = {}
        for prompt, one in enumerate(content):
            for value in one:
                self._prompt_of.setdefault(value, []).append(prompt)
        self._needed = [max(round(overlap * len(one)), min(run, len(one))) for one in content]

    def are_in(self, texts: Iterable[str]) -> bool:
        """Return whether one of the texts holds a benchmark prompt."""
        return any(self._is_in(text) for text in texts)

    def _is_in(self, text: str) -> bool:
        words = tokens(text)
        beginning = list(islice(words, self._run))
        if len(beginning) < self._run:
            return " ".join(beginning) in self._short
        runs = set(np.unique(run_hashes(chain(beginning, words), self._run)).tolist()) & self._prompt_of.keys()
        hits = Counter(prompt for value in runs for prompt in self._prompt_of[value])
        return any(count >= self._needed[prompt] for prompt, count in hits.items())


def read_prompts(paths: Iterable[str | Path]) -> Iterator[str]:
    """Yield every turn of benchmark files of `{"turns": […]}` rows.

    Raises:
        SourceError: a row has no list of texts under `turns`.
    """
    for path in paths:
        for line, row in read_rows(path):
            turns = row.get("turns")
            if not isinstance(turns, list) or not all(is_text(turn) for turn in turns):
                raise SourceError('wanted {"turns": [text, …]} in a benchmark file', path, line)
            yield from turns


def _content(runs: set[int], shared: Counter[int]) -> set[int]:
    """Return the runs that few prompts share, or all where every run is shared."""
    return {value for value in runs if shared[value] <= WRAPPING} or runs

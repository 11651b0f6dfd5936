"""Text as hashed runs of words: what near-duplicates and benchmark prompts are recognised by."""

import re
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]

_CJK = "\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
"""A word, or one sign: `3+5` and `3-5` differ. Chinese and Japanese, written without spaces, go sign by sign."""

_HELD = 1 << 20
"""Signs of a text whose words may be in memory together."""


def tokens(text: str) -> Iterator[str]:
    """Return the words and signs of a text, without case; those of a very long one are never held together."""
    folded = text.casefold()
    if len(folded) <= _HELD:
        return iter(_TOKEN.findall(folded))
    return (found.group() for found in _TOKEN.finditer(folded))


def run_hashes(words: Iterable[str], length: int) -> Hashes:
    """Return a hash of each run of `length` words; a shorter text is one run, an empty one has none."""
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(word.encode()) for word in words), dtype=np.uint64)
    length = min(length, len(hashes))
    if length == 0:
        return hashes
    runs = np.zeros(len(hashes) - length + 1, dtype=np.uint64)
    for offset in range(length):  # a polynomial over the words of the run, modulo 2^64
        runs *= np.uint64(0x9E3779B97F4A7C15)
        runs += hashes[offset : offset + len(runs)]
    return runs ^ (runs >> np.uint64(29))

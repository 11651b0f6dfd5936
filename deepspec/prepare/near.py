"""Near-duplicates by MinHash: signatures go to a file as rows come, candidate pairs are found band by band.

A signature holds, for each of 112 hash functions, the smallest hash of the prompt's runs of five words; two prompts
agree in a place with the chance of their Jaccard similarity (Broder 1997). Prompts that agree in all eight places of
one of 14 bands become a candidate pair, which counts where the share of agreeing places reaches the threshold.
Memory: about 30 bytes a row, for one band at a time; disk: 448 bytes a row, in scratch.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepspec.prepare.text import Hashes, run_hashes, tokens

RUN = 5
BANDS, PLACES = 14, 8
NEIGHBOURS = 16
"""Within a band's group of equal rows, each is compared with so many before it: enough for chains, never quadratic."""

_CHUNK = 1 << 16
_RUNS_AT_ONCE = 1 << 12
"""Runs whose hashes are in memory: 112 of 8 bytes each, 4 MB."""

_FUNCTIONS = np.random.Generator(np.random.PCG64(1997)).integers(0, 2**64, (3, BANDS * PLACES), dtype=np.uint64)
_MULTIPLY, _ADD = _FUNCTIONS[0] | np.uint64(1), _FUNCTIONS[1]
_BAND_FACTORS = _FUNCTIONS[2, :PLACES] | np.uint64(1)

Signatures = npt.NDArray[np.uint32]


def signature(text: str) -> Signatures:
    """Return the signature of one text, `(112,)`."""
    runs = run_hashes(tokens(text), RUN)
    if not runs.size:
        return np.zeros(BANDS * PLACES, dtype=np.uint32)
    lowest = _lowest(runs[:_RUNS_AT_ONCE])
    for start in range(_RUNS_AT_ONCE, len(runs), _RUNS_AT_ONCE):
        lowest = np.minimum(lowest, _lowest(runs[start : start + _RUNS_AT_ONCE]))
    return lowest.astype(np.uint32)


def _lowest(runs: Hashes) -> Hashes:
    lowest: Hashes = ((runs[:, None] * _MULTIPLY + _ADD) >> np.uint64(32)).min(axis=0)
    return lowest


class SignatureFile:
    """Signatures of many rows on disk, in the order of the rows."""

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self.path = path
        self._file = path.open("wb")

    def add(self, one: Signatures) -> None:
        """Append the signature of one row."""
        self._file.write(one.tobytes())

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def read(self) -> Signatures:
        """Return all signatures, `(rows, 112)`, mapped from disk."""
        if self.path.stat().st_size == 0:
            return np.zeros((0, BANDS * PLACES), dtype=np.uint32)
        return np.memmap(self.path, dtype=np.uint32, mode="r").reshape(-1, BANDS * PLACES)


def near_duplicates(signatures: Signatures, ranks: Hashes, threshold: float) -> npt.NDArray[np.bool_]:
    """Return which rows are near-duplicates of a row of lower rank.

    Args:
        signatures: `(rows, 112)`.
        ranks: `(rows,)`; of two near-duplicates the one of lower rank stays, so the order of rows does not matter.
        threshold: share of agreeing places from which two rows count as near-duplicates.

    Returns:
        `(rows,)`, True where the row should go.
    """
    goes = np.zeros(len(signatures), dtype=np.bool_)
    for band in range(BANDS):
        keys = _band_keys(signatures, band)
        order = np.lexsort((ranks, keys))
        for later, earlier in _pairs(keys, order):
            for start in range(0, len(later), _CHUNK):
                piece = slice(start, start + _CHUNK)
                agree = (signatures[later[piece]] == signatures[earlier[piece]]).mean(axis=1)
                goes[later[piece][agree >= threshold]] = True
    return goes


def _band_keys(signatures: Signatures, band: int) -> Hashes:
    keys = np.empty(len(signatures), dtype=np.uint64)
    for start in range(0, len(signatures), _CHUNK):
        places = signatures[start : start + _CHUNK, band * PLACES : (band + 1) * PLACES].astype(np.uint64)
        keys[start : start + _CHUNK] = (places * _BAND_FACTORS).sum(axis=1, dtype=np.uint64)
    return keys


def _pairs(keys: Hashes, order: npt.NDArray[np.int64]) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return pairs (row of higher rank, row of lower rank) with equal keys; within a group, `order` sorts by rank."""
    ordered = keys[order]
    pairs = []
    for distance in range(1, NEIGHBOURS + 1):
        equal = np.flatnonzero(ordered[distance:] == ordered[:-distance])
        if not equal.size:
            break
        pairs.append((order[equal + distance], order[equal]))
    return pairs

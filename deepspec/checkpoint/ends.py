"""How far a draft's token embedding and head are from its target's, of which they are copies: nothing else is read.

A draft proposes by the target's embedding and is read by its head. With others it is still a sound checkpoint that no
check of its form refuses; only nothing of what it proposes is accepted.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepspec.errors import CheckpointError, TargetError
from deepspec.families import read_folder
from deepspec.families.ends import ends_of, head_bias
from deepspec.formats.tensor_heads import WEIGHTS, read_heads, read_placed

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
"""How the names of the two end in every family; a tied model stores the first only."""

APART = 0.1
"""Relative distance above which they are not copies. Rounding to bf16 gives 0.002; fine-tuning moves them further."""

_ROWS = 4096
_NAMES: Mapping[str, str] = {EMBEDDING: "embedding", HEAD: "head"}


class EndWeights(NamedTuple):
    """What a draft has of its target's weights."""

    embedding: Tensor
    """`(V, D)`."""
    head: Tensor
    """`(V, D)`; the same tensor where the two are tied."""
    bias: Tensor | None
    """`(V,)` of the head; None where it has none, or one of zeros."""


def read_ends(folder: Path) -> EndWeights:
    """Return a target's token embedding and head, and read nothing else of it.

    Raises:
        TargetError: no safetensors file holds an embedding.
    """
    shape, heads = read_folder(folder), read_heads(folder)
    ends = ends_of(heads, shape.vocab_size, shape.block.hidden_size)
    if ends is None:
        raise TargetError(f"target {folder}: no tensor named …{EMBEDDING} in its safetensors files")
    bias = head_bias(folder, heads, shape.vocab_size)
    wanted = {name for name in (ends.embedding, ends.head, bias) if name is not None}
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in wanted & set(file.keys())}
        except SafetensorError as error:
            raise TargetError(f"target {path}: {error}; fetch the file again") from error
    return EndWeights(found[ends.embedding], found[ends.head], None if bias is None else found[bias])


def ends_apart(draft: Path, target: Path) -> dict[str, float]:
    """Return the relative Frobenius distance of a draft's embedding and head from its target's.

    Args:
        draft: folder of the draft, in the public form.
        target: folder of the target.

    Returns:
        `embedding` and `head`, as far as both have them in one shape; a head of reduced vocabulary is held against the
        rows of its tokens.

    Raises:
        CheckpointError: a file cannot be read.
    """
    with ExitStack() as files:
        ours, theirs = _Ends(draft, files), _Ends(target, files)
        pairs = {name: (ours.rows(name), theirs.rows(name)) for name in (EMBEDDING, HEAD)}
        known = ours.known()
        return {
            _NAMES[name]: _relative(first, second, known if name == HEAD else None)
            for name, (first, second) in pairs.items()
            if first is not None and second is not None and first.get_shape()[1:] == second.get_shape()[1:]
        }


def distances_told(apart: Mapping[str, float]) -> str:
    """Return distances in words."""
    return ", ".join(f"{name} {distance:.3g}" for name, distance in apart.items()) or "not known"


def warning(apart: Mapping[str, float]) -> str | None:
    """Return what must be said where embedding or head are not the target's; None where they are."""
    wrong = [name for name, distance in apart.items() if not distance <= APART]
    if not wrong:
        return None
    return (
        f"The draft's {' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not the target's (relative distance "
        f"{distances_told(apart)}, a copy has less than {APART:g}): unless the target was fine-tuned, it is a draft of "
        "another one, or damaged."
    )


class _Ends:
    """Embedding and head in one folder, opened and not read."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder, self._files = folder, files
        self._heads = read_heads(folder, CheckpointError)
        one = (folder / WEIGHTS).exists()
        self._placed = dict.fromkeys(self._heads, WEIGHTS) if one else read_placed(folder, CheckpointError)

    def rows(self, end: str) -> Any | None:
        """Return the rows of a matrix that can be compared: a tied model's head is its embedding."""
        found = [name for name in self._matrices() if name.endswith(end)]
        if not found:
            return self.rows(EMBEDDING) if end == HEAD else None
        return self._slice(found[0])

    def known(self) -> Tensor | None:
        """Return the target's ids that a head of reduced vocabulary knows; None: all."""
        if "d2t" not in self._heads:
            return None
        steps: Tensor = self._slice("d2t")[:]
        return steps + torch.arange(len(steps))

    def _matrices(self) -> Iterator[str]:
        for name, head in self._heads.items():
            if len(head.shape) == 2 and head.dtype in ("F64", "F32", "F16", "BF16"):
                yield name

    def _slice(self, name: str) -> Any:
        path = self._folder / self._placed[name]
        try:
            return self._files.enter_context(safe_open(path, "pt")).get_slice(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error


def _relative(ours: Any, theirs: Any, known: Tensor | None) -> float:
    rows, most = ours.get_shape()[0], theirs.get_shape()[0]
    ids = torch.arange(min(rows, most)) if known is None else known[(known >= 0) & (known < most)][:rows]
    apart = whole = 0.0
    for start in range(0, len(ids), _ROWS):
        part = ids[start : start + _ROWS]
        first, last = int(part.min()), int(part.max()) + 1
        wanted = theirs[first:last].float()[part - first]
        apart += float((ours[start : start + len(part)].float() - wanted).double().pow(2).sum())
        whole += float(wanted.double().pow(2).sum())
    return math.sqrt(apart / max(whole, 1e-30))

"""A target's config held against its weights, of which only the headers are read. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepspec.errors import TargetError
from deepspec.families import TargetShape, read_folder
from deepspec.formats.tensor_heads import TensorHead, listed, read_heads

EMBEDDING = "embed_tokens.weight"
"""How the name of the token embedding ends in every family."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetHeads:
    """What is known of a target before it is loaded."""

    folder: Path
    shape: TargetShape
    heads: Mapping[str, TensorHead]

    @property
    def rows(self) -> int:
        """Return the rows of the token embedding; what the config says where no tensor is called so."""
        embedding = _embedding(self.heads)
        return self.shape.vocab_size if embedding is None else embedding.shape[0]

    @property
    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(head.values for head in self.heads.values())


def read_target(folder: Path) -> TargetHeads:
    """Return what config and headers say of the target in a folder.

    Raises:
        TargetError: a file is missing, damaged or a git-lfs pointer, or config and weights are not of one model.
        UnknownNameError: unknown model_type or rope type.
    """
    shape, heads = read_folder(folder), read_heads(folder)
    embedding, wanted = _embedding(heads), (shape.vocab_size, shape.block.hidden_size)
    if embedding is not None and embedding.shape != wanted:
        raise TargetError(f"target {folder}: its embedding is {embedding.shape}, its config says {wanted}")
    missing = _missing_layers(heads, shape.num_layers)
    if missing:
        raise TargetError(
            f"target {folder}: its config says {shape.num_layers} layers, its weights have none of "
            f"{listed([f'layers.{layer}' for layer in missing])}; fetch it again"
        )
    return TargetHeads(folder=folder, shape=shape, heads=heads)


def _embedding(heads: Mapping[str, TensorHead]) -> TensorHead | None:
    found = [head for name, head in heads.items() if name.endswith(EMBEDDING) and len(head.shape) == 2]
    return max(found, key=lambda head: head.shape[0], default=None)


def _missing_layers(heads: Mapping[str, TensorHead], count: int) -> list[int]:
    """Return layers that no tensor belongs to: all of them up to the first gap's end, for a count may be absurd."""
    present = {int(found[1]) for name in heads for found in _LAYER.finditer(name)}
    return [layer for layer in range(min(count, len(present) + 6)) if layer not in present]

"""A target's config held against its weights, of which only the headers are read. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepspec.errors import TargetError
from deepspec.families import TargetShape, read_folder
from deepspec.families.ends import HEAD, Ends, ends_of, head_bias
from deepspec.families.quantized import counted_weights
from deepspec.formats.tensor_heads import DTYPES, TensorHead, listed, read_heads, read_object

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|block|h)\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetHeads:
    """What is known of a target before it is loaded."""

    folder: Path
    shape: TargetShape
    heads: Mapping[str, TensorHead]

    @property
    def ends(self) -> Ends | None:
        """Return which tensors are embedding and head; None where no tensor is an embedding."""
        return ends_of(self.heads, self.shape.vocab_size, self.shape.block.hidden_size)

    @property
    def rows(self) -> int:
        """Return the rows of the token embedding; what the config says where no tensor is one."""
        return self.shape.vocab_size if self.ends is None else self.heads[self.ends.embedding].shape[0]

    @property
    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(self.weights.values())

    @property
    def weights(self) -> Mapping[str, int]:
        """Return how many weights each tensor holds."""
        return counted_weights(self.heads, self._quantization)

    @property
    def bits(self) -> float | None:
        """Return the bits of one weight as the checkpoint has them, on the average; None where it is not quantised."""
        if self._quantization is None:
            return None
        return sum(head.values * head.bits for head in self.heads.values()) / self.parameters

    @property
    def _quantization(self) -> Mapping[str, Any] | None:
        told = read_object(self.folder / "config.json").get("quantization_config")
        return told if isinstance(told, Mapping) else None


def read_target(folder: Path) -> TargetHeads:
    """Return what config and headers say of the target in a folder.

    Raises:
        TargetError: a file is missing, damaged or a git-lfs pointer, or config and weights are not of one model.
        UnknownNameError: unknown model_type or rope type.
    """
    shape, heads = read_folder(folder), read_heads(folder)
    wanted = (shape.vocab_size, shape.block.hidden_size)
    ends = ends_of(heads, *wanted)
    if ends is not None and heads[ends.embedding].shape != wanted:
        raise TargetError(f"target {folder}: its embedding is {heads[ends.embedding].shape}, its config says {wanted}")
    if ends is not None and ends.head == ends.embedding and _untied(folder):
        raise TargetError(
            f"target {folder}: its files hold no head (…{HEAD}), and its config does not tie one to the "
            "embedding; wanted a causal language model"
        )
    bias = head_bias(folder, heads, shape.vocab_size)
    if bias is not None and not shape.general:
        raise TargetError(f"target {folder}: {bias}: a {shape.family} head has no bias; is its config its own?")
    missing = _missing_layers(heads, shape.num_layers) if not shape.general or _numbered(heads) else []
    if missing:
        raise TargetError(
            f"target {folder}: its config says {shape.num_layers} layers, its weights have none of "
            f"{listed([f'layers.{layer}' for layer in missing])}; fetch it again"
        )
    return TargetHeads(folder=folder, shape=replace(shape, head_bias=bias is not None), heads=heads)


def checkpoint_dtype(folder: Path) -> str:
    """Return the precision in which transformers would load a target by itself: what its config says, or its embedding.

    Raises:
        TargetError: that is none that states are captured in.
    """
    target = read_target(folder)
    told = target.shape.text_config.get("dtype") or target.shape.text_config.get("torch_dtype")
    if told is None and target.ends is not None:
        told = target.heads[target.ends.embedding].dtype
    found = {name: name for name in DTYPES} | {stored: name for name, stored in DTYPES.items()}
    dtype = found.get(str(told).removeprefix("torch."))
    if dtype is None:
        known = ", ".join(sorted(DTYPES))
        raise TargetError(f"target {folder}: its precision is {told}; set cache.dtype to one of {known}")
    return dtype


def _untied(folder: Path) -> bool:
    """Return whether a config says that head and embedding are two, and no part of it says otherwise."""
    config = read_object(folder / "config.json")
    nested = config.get("text_config")
    parts = (config, nested) if isinstance(nested, Mapping) else (config,)
    told = [part["tie_word_embeddings"] for part in parts if part.get("tie_word_embeddings") is not None]
    return bool(told) and not any(told)


def _missing_layers(heads: Mapping[str, TensorHead], count: int) -> list[int]:
    """Return layers that no tensor belongs to: all of them up to the first gap's end, for a count may be absurd."""
    present = {int(found[1]) for name in heads for found in _LAYER.finditer(name)}
    return [layer for layer in range(min(count, len(present) + 6)) if layer not in present]


def _numbered(heads: Mapping[str, TensorHead]) -> bool:
    return any(_LAYER.search(name) for name in heads)

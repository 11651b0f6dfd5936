"""Which tensors of a checkpoint are the token embedding and the head, told by headers alone. No torch.

Families of the table, and most others, call them by two names. Where a checkpoint does not, they are the matrices of
vocabulary × hidden size outside its blocks, and the one that is called an embedding is that. A target that is read by
the general rule is proven: the loaded model's own rows must be those.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepspec.formats.tensor_heads import TensorHead, read_bytes

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
"""How the two end in most checkpoints; a tied model stores the first only."""

_NUMBERED = re.compile(r"\.\d+\.")
_EMBEDDING = re.compile(r"(?<!un)emb(?!ed_out)|wte|\.w\.weight$")
_POSITION = re.compile(r"pos|wpe|type")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """Names of two tensors; the same where they are tied."""

    embedding: str
    head: str


def ends_of(heads: Mapping[str, TensorHead], vocab_size: int, hidden_size: int) -> Ends | None:
    """Return the embedding and head among a checkpoint's tensors; None where no tensor is an embedding.

    Args:
        heads: every tensor of the checkpoint.
        vocab_size: rows of both; another number is the caller's to refuse.
        hidden_size: columns of both.
    """
    named = [name for name, head in heads.items() if name.endswith(EMBEDDING) and len(head.shape) == 2]
    if named:
        embedding = max(named, key=lambda name: heads[name].shape[0])
        return Ends(embedding=embedding, head=next((name for name in heads if name.endswith(HEAD)), embedding))
    found = [name for name, head in heads.items() if head.shape == (vocab_size, hidden_size)]
    free = [name for name in found if not _NUMBERED.search(name) and not _POSITION.search(name)]
    embeddings = [name for name in free if _EMBEDDING.search(name)]
    if not embeddings:
        return None
    others = [name for name in free if name not in embeddings]
    return Ends(embedding=embeddings[0], head=others[0] if others else embeddings[0])


def head_bias(folder: Path, heads: Mapping[str, TensorHead], vocab_size: int) -> str | None:
    """Return the name of the head's bias; None where there is none, or one of zeros.

    Args:
        folder: of the checkpoint: its values are read.
        heads: every tensor of it.
        vocab_size: length of a bias of the head.
    """
    found = [name for name, head in heads.items() if name.endswith("bias") and head.shape == (vocab_size,)]
    return next((name for name in found if _not_zero(read_bytes(folder, name), vocab_size)), None)


def _not_zero(stored: bytes, count: int) -> bool:
    """Return whether one of so many numbers is not 0: −0 is, which differs in the highest bit of its last byte."""
    size = len(stored) // count
    return any(stored[byte::size].strip(b"\x00\x80" if byte == size - 1 else b"\x00") for byte in range(size))

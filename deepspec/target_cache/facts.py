"""What a target cache says about itself in its manifest. Loads no model library."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from deepspec.artifacts import TargetId


class SplitCounts(BaseModel):
    """What one split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    """Tokens that the target generated."""


class CacheFacts(BaseModel):
    """What training must know of a cache: read from the manifest's counts, which have no second home."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    target: TargetId
    """Whose states these are."""
    layers: tuple[int, ...]
    """Captured layers, in the order in which they are concatenated; -1 is the embedding output."""
    num_layers: int
    """Decoder layers of the target."""
    hidden_size: int
    vocab_size: int
    """Rows of the target's embedding."""
    mask_token_id: int | None
    """A token that text never gives; None where the target has none."""
    mask_token_advice: str = ""
    """Where it has none: which token to choose, and how."""
    dtype: str
    """Precision in which the target ran."""
    quantization: str | None = None
    """How its weights were quantised (gptq, fp8, …); None: they were not."""
    embedding_scale: float | None = None
    """What its first block is fed, as a multiple of the embedding, where it was read by the general rule."""
    codec: str
    splits: Mapping[str, SplitCounts]
    stored_bytes: int
    """Of all parts."""
    published_bytes: int
    """What the layout of the public caches would take: every position, raw bf16."""

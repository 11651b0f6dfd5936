"""What a target cache says about itself in its manifest. Loads no model library."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from deepspec.errors import SpecError
from deepspec.specs import TargetId


class SplitCounts(BaseModel):
    """What one split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    """Tokens that the target generated."""


class Sampled(BaseModel):
    """How answers were sampled, as far as a distribution over the next token says it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float
    """0: greedily."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    min_p: float = 0.0


def sampled_as(answers: Mapping[str, Any]) -> Sampled | None:
    """Return how the answers of an artifact were sampled, from its spec; None where that does not say it."""
    sampling = answers.get("sampling")
    if sampling is None or answers.get("answers") is not None:
        return None
    if sampling.get("repetition_penalty") not in (None, 1.0) or sampling.get("presence_penalty") not in (None, 0.0):
        return None
    told = {name: sampling.get(name) for name in Sampled.model_fields}
    return Sampled.model_validate({name: value for name, value in told.items() if value is not None})


class EngineFacts(BaseModel):
    """Which engine computed the states of a cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    quantization: str | None = None
    """How it quantised the target; None: as the checkpoint is."""


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
    stop_ids: tuple[int, ...] | None = None
    """Tokens that end an answer; None: the cache was made before it told them."""
    engine: EngineFacts | None = None
    """What computed the states; None: transformers."""
    last_is_label: bool = False
    """Whether each sample's last token is a label only: engines gave the states with the answers (docs/states.md). Its
    own states are zeros."""
    sampled: Sampled | None = None
    """How its answers were sampled; None: nobody knows, as of answers that were brought, or penalties changed the
    distribution from token to token."""
    splits: Mapping[str, SplitCounts]
    stored_bytes: int
    """Of all parts."""
    published_bytes: int
    """What the layout of the public caches would take: every position, raw bf16."""

    def with_states(self, tokens: int) -> int:
        """Return how many of a sample's tokens have states of the target: all, or all but the last."""
        return tokens - 1 if self.last_is_label else tokens

    def check_supervises(self, where: str, *, behind_the_end: bool) -> None:
        """Check that training asks nothing of states that are not there.

        Args:
            where: the cache, for messages.
            behind_the_end: whether the objective looks there (`Objective.looks_behind_the_end`).

        Raises:
            SpecError: it holds the draft against what the target says behind the last token.
        """
        if self.last_is_label and behind_the_end:
            raise SpecError(
                f"{where} holds the states that came with the answers, none of any answer's last token, and "
                "train.objective.mask_alignment=deepspec, and convention=speculators, ask what the target says behind "
                "it; leave them out, or set cache.while_answering=false"
            )

    def check_rolls(self, where: str) -> None:
        """Check that another machine can make the very bytes of the states again.

        Raises:
            SpecError: an engine made them.
        """
        if self.engine is not None:
            raise SpecError(
                f"the states of {where} are those of {self.engine.name} {self.engine.version}, and "
                "train.source=rolling promises the very bytes of a capture, which no second engine gives; set "
                "train.source=cache, or online, which computes them with transformers"
            )

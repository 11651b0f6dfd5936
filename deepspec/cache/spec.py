"""What changes the target cache."""

from typing import Any, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator

from deepspec.lines.bad_rows import DEFAULT_SHARE, BadShare
from deepspec.specs import NOT_ADDRESSED, Spec, TargetId
from deepspec.target_cache.sizes import MIB

BAD_SHARE = "cache.bad_share"
"""Where the share of bad rows is set, for messages."""
NO_SGLANG = (
    "states of SGLang are not taken: its stock form sends them as JSON numbers, of newly computed positions only, and "
    "usually without the last layer"
)


class CacheOptions(Spec):
    """What a user sets of a target cache."""

    layers: tuple[int, ...] | None = None
    """Captured target layers, ascending, -1 the embedding output; None: 5, evenly from 1 to L - 4, for mtp the last,
    L - 1, alone."""
    codec: Literal["bf16", "bf16-zstd", "fp8", "none"] = "bf16-zstd"
    """How states are stored: raw; lossless, about 0.70 of raw; rounded to 8 bits, about 0.43; not at all, but tokens
    only, for training that computes states itself (train.source online or rolling)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision in which the target runs; auto: that of its checkpoint. States are stored as bf16 or less."""
    max_length: int = Field(default=4096, gt=1)
    """Tokens of a sample; what lies beyond is cut off and counted."""
    cut: Literal["head", "anywhere"] = "head"
    """Which so many tokens are kept of a longer sample: the first; or a stretch around any supervised token, which the
    target reads by itself, as if the text began there."""
    cut_seed: int = Field(default=0, ge=0)
    """Of the choice of stretches."""
    min_supervised: int = Field(default=2, gt=0)
    """Samples with fewer supervised tokens are left out and counted."""
    bad_share: BadShare = DEFAULT_SHARE
    """Share of the answers, from the twentieth on, that may be impossible to render or to mask; beyond it the stage
    ends with a table of why."""
    splits: tuple[Literal["train", "validation"], ...] = ("train", "validation")
    """Splits whose states are stored: what training reads. Calibration and test are decoded, not trained on."""
    part_bytes: int = Field(default=256 * MIB, gt=0)
    """States of one part, before the codec: what a killed run redoes at most."""
    batch_tokens: int = Field(default=8192, gt=0)
    """Tokens of one forward pass, padding included. It changes how matrix products round, so it is part of the spec."""
    states: Literal["transformers", "vllm"] = "transformers"
    """What computes the states: transformers, in this process; or a vLLM engine, which also runs targets that
    transformers cannot hold, and whose states agree with transformers' within its precision, not to the byte."""
    engine_version: str | None = None
    """Version of the engine whose states they are; None: asked of the engine when a run begins."""
    engine_quantization: str | None = None
    """How the engine quantises a target whose checkpoint is not (fp8, …); None: not at all."""
    while_answering: bool = False
    """Whether the engine gives states with the answers, in one request (docs/states.md). Of the last token of a sample
    there are none then: it is a label only, and its states are zeros."""
    keep_states: ByteSize | None = Field(default=None, gt=0, json_schema_extra=NOT_ADDRESSED)
    """Bytes of such states that are kept in scratch until the cache has them: 200GB, 2TB; None: four fifths of what is
    free there. What does not fit is asked for again."""

    @field_validator("states", mode="before")
    @classmethod
    def _are_taken(cls, told: Any) -> Any:
        if told == "sglang":
            raise ValueError(f"{NO_SGLANG}; set cache.states=vllm, or leave it to transformers")
        return told

    @model_validator(mode="after")
    def _comes_with_answers_of_an_engine(self) -> Self:
        if self.while_answering and self.states == "transformers":
            raise ValueError(
                "cache.while_answering takes states from the engine that answers, and cache.states=transformers makes "
                "them itself; set cache.states=vllm (--states-while-answering sets both)"
            )
        if self.keep_states is not None and not self.while_answering:
            raise ValueError("cache.keep_states is of states that come with answers; set cache.while_answering=true")
        return self

    @model_validator(mode="after")
    def _engine_is_asked(self) -> Self:
        if self.states == "transformers" and (self.engine_version or self.engine_quantization):
            raise ValueError("engine_version and engine_quantization are of an engine; set cache.states=vllm")
        if self.states == "vllm" and self.codec == "none":
            raise ValueError(
                "cache.codec=none stores no states, and cache.states=vllm asks an engine for them; leave out one"
            )
        return self


class CacheSpec(CacheOptions):
    """Store what the target computes inside while it reads its answers."""

    target: TargetId
    """Which target runs."""

    @property
    def engine_states(self) -> "CacheSpec":
        """Return itself: it says which states an engine gives."""
        return self

    @property
    def engine_tokens(self) -> int:
        """Return how many tokens an engine reads at most; 0 where none is asked."""
        return self.max_length if self.states == "vllm" else 0

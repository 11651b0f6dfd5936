"""What an estimate is made from: the sizes of a target, a machine and its prices, and the counts of a run."""

from collections.abc import Mapping

from pydantic import Field

from deepspec.ranges import Range
from deepspec.specs import Spec
from deepspec.target_cache.sizes import BF16_BYTES, CODEC_RATIO, Captured


class Sizes(Spec):
    """What an offline estimate must know of a target."""

    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    parameters: int = Field(gt=0)
    working: int | None = Field(default=None, gt=0)
    """Parameters that work on one token, where a part of the experts does; None: all."""
    bits: float | None = Field(default=None, gt=0)
    """Of a weight in memory, on the average, where the target is quantised; None: it is not, and lies there in bf16."""
    reads_again: bool = False
    """Whether tokens can be taken back from its memory by reading the accepted ones again, and not otherwise."""

    @property
    def weight_bits(self) -> float:
        """Return the bits of a weight in memory, on the average."""
        return self.bits or 8 * BF16_BYTES

    @property
    def weights_bytes(self) -> float:
        """Return the bytes of all weights in memory."""
        return self.parameters * self.weight_bits / 8


class Hardware(Spec):
    """A machine and its prices, in US dollars. One YAML file each under presets/hardware."""

    devices: int = Field(gt=0)
    train_tflops: float = Field(gt=0)
    """Sustained by one device in training and capture."""
    engine_tflops: float = Field(gt=0)
    """Sustained by one device while an engine generates in full batches."""
    device_memory_gb: float = Field(gt=0)
    """Of one device; a target whose weights are more lies over several."""
    device_gb_per_second: float = Field(gt=0)
    """At which one device reads its own memory."""
    layer_ms: float = Field(ge=0)
    """Of launching one layer of a pass, in milliseconds, see `deepspec/plan/cost/decoding.py`."""
    store_gb_per_second: float = Field(gt=0)
    """Sustained by all devices together against the store, reading or writing."""
    device_hour: float = Field(ge=0)
    storage_gb_month: float = Field(ge=0)
    put_per_1000: float = Field(ge=0)
    get_per_1000: float = Field(ge=0)
    egress_gb: float = Field(ge=0)


class Workload(Spec):
    """The counts that decide the cost."""

    captured: Captured
    """What the cache holds."""
    codec: str = "bf16-zstd"
    ratios: Mapping[str, Range] = CODEC_RATIO
    """Codec -> bytes of states against raw bf16."""
    source: str = "cache"
    """Where training takes hidden states from."""
    keep_states: int = 0
    """Bytes of states from engines that are kept for later passes."""
    with_answers: float = Field(default=0.0, ge=0, le=1)
    """Share of the states of a cache that come with the answers."""
    passes: float = Field(gt=0)
    """How often training reads each sample."""
    draft_layers: int = Field(gt=0)
    anchors: int = Field(gt=0)
    block: int = Field(gt=0)
    refiner_rank: int = 0
    """Of two tables of the vocabulary that Muon steps like other matrices; 0: there are none."""
    greedy: int = Field(default=0, ge=0)
    """Held-out prompts that are answered once more, at temperature 0."""
    looks: float = Field(default=0, ge=0)
    """Looks at held-out samples: each walks over those answers."""
    walked: int = Field(default=0, ge=0)
    """Tokens of each that are walked, at most; a round may begin at every one."""
    draft_vocabulary: int | None = None
    """Tokens that the draft's head knows; None: the target's."""
    questions: int = Field(ge=0)
    """Prompts that evaluation decodes with the draft, all benchmarks and temperatures together."""
    alone: int = Field(default=0, ge=0)
    """Prompts that it decodes token by token, for comparison."""
    prompt_tokens: int = Field(default=0, ge=0)
    """Of each of them, to be read first."""
    question_tokens: int = Field(gt=0)
    """Upper bound of an answer's length in evaluation."""
    weight_bytes: int = 2
    """Of one weight while it decodes in evaluation."""

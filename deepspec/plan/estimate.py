"""What a plan will cost, before anything is spent: bytes, requests, hours and money, each with an interval.

Works from sizes and counts alone, so it needs neither the target nor the network. Before answers exist their length
is a guess and every number that hangs on it comes as an interval; once they exist the counts are exact.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from deepspec.artifacts import Spec

GUESS = 0.30
"""Half-width of the interval around a guessed token count, as a share of it."""

CODEC_RATIO: Mapping[str, float] = {"bf16": 1.0, "bf16-zstd": 0.70, "fp8": 0.43, "none": 0.0}
"""Bytes of hidden states against raw bf16, as measured on real states."""

TOKEN_BYTES = 5
"""Token id (int32) and loss mask (one byte), stored for every position."""

PUBLISHED_TOKEN_BYTES = 6
"""The same in the published layout, which stores an attention mask too."""


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


class Hardware(Spec):
    """A machine and its prices, in US dollars. One YAML file each under presets/hardware."""

    devices: int = Field(gt=0)
    train_tflops: float = Field(gt=0)
    """Sustained by one device in training and capture."""
    engine_tflops: float = Field(gt=0)
    """Sustained by one device while an engine generates in full batches."""
    device_memory_gb: float = Field(gt=0)
    store_gb_per_second: float = Field(gt=0)
    """Sustained by all devices together against the store, reading or writing."""
    device_hour: float = Field(ge=0)
    storage_gb_month: float = Field(ge=0)
    put_per_1000: float = Field(ge=0)
    get_per_1000: float = Field(ge=0)
    egress_gb: float = Field(ge=0)


class Workload(Spec):
    """The counts that decide the cost."""

    samples: int = Field(gt=0)
    prompt_tokens: float = Field(ge=0)
    """Mean per sample."""
    answer_tokens: float = Field(gt=0)
    """Mean per sample; the supervised ones."""
    exact: bool = False
    """Whether the counts are measured, not guessed."""
    captured_layers: int = Field(gt=0)
    codec: str = "bf16-zstd"
    part_bytes: int = Field(gt=0)
    passes: float = Field(gt=0)
    """How often training reads each sample."""
    draft_layers: int = Field(gt=0)
    anchors: int = Field(gt=0)
    block: int = Field(gt=0)
    questions: int = Field(ge=0)
    """Benchmark prompts, all benchmarks and temperatures together."""
    question_tokens: int = Field(gt=0)
    """Upper bound of an answer's length in evaluation."""


class Range(Spec):
    """An estimate with its interval; the three agree where it is exact."""

    low: float
    mid: float
    high: float

    def scaled(self, factor: float) -> "Range":
        """Return all three times a factor."""
        return Range(low=self.low * factor, mid=self.mid * factor, high=self.high * factor)

    def plus(self, other: "Range") -> "Range":
        """Return the sum, ends added to ends."""
        return Range(low=self.low + other.low, mid=self.mid + other.mid, high=self.high + other.high)

    def longer(self, other: "Range") -> "Range":
        """Return the larger of both at each end."""
        return Range(low=max(self.low, other.low), mid=max(self.mid, other.mid), high=max(self.high, other.high))


class Estimate(Spec):
    """What a plan costs, stage by stage."""

    tokens: Range
    cache_bytes: Mapping[str, Range]
    """Per codec, and `published` for the layout of the public caches (all positions, raw bf16)."""
    store_bytes: Range
    """Everything published, with the chosen codec."""
    hours: Mapping[str, Range]
    """Per stage, on the given hardware."""
    puts: Range
    gets: Range
    money: Range
    """Device hours, one month of storage, requests and egress, in US dollars."""


def estimate(sizes: Sizes, work: Workload, hardware: Hardware) -> Estimate:
    """Return the cost of a plan.

    Args:
        sizes: of the target.
        work: counts of the run.
        hardware: machine and prices.
    """
    answers = _range(work.samples * work.answer_tokens, work.exact)
    tokens = _range(work.samples * (work.answer_tokens + work.prompt_tokens), work.exact)
    cache = _cache_bytes(sizes, work, tokens, answers)
    chosen = cache[work.codec]
    draft_bytes = 2.0 * (2 * sizes.vocabulary * sizes.hidden + draft_parameters(sizes, work))
    store_bytes = chosen.plus(tokens.scaled(4)).plus(_exact(4 * draft_bytes))
    hours = _moving(_hours(sizes, work, hardware, tokens, answers), chosen, work.passes, hardware)
    parts = chosen.scaled(1 / work.part_bytes)
    puts, gets = parts.scaled(2), parts.scaled(work.passes)
    money = _money(hardware, hours, store_bytes, (puts, gets))
    return Estimate(
        tokens=tokens, cache_bytes=cache, store_bytes=store_bytes, hours=hours, puts=puts, gets=gets, money=money
    )


def draft_parameters(sizes: Sizes, work: Workload) -> float:
    """Return the trainable parameters of the draft: its blocks and the projection that fuses the captured layers."""
    attention = sizes.hidden * sizes.head_dim * (2 * sizes.heads + 2 * sizes.kv_heads)
    block = attention + 3 * sizes.hidden * sizes.intermediate
    return float(work.draft_layers * block + work.captured_layers * sizes.hidden**2)


def rows(result: Estimate) -> list[dict[str, Any]]:
    """Return the estimate as a table for people."""
    table = [_row("tokens", result.tokens, _count)]
    table += [_row(f"target cache, {name}", value, size) for name, value in result.cache_bytes.items()]
    table.append(_row("store, all artifacts", result.store_bytes, size))
    table += [_row(f"{stage} hours", value, _hours_text) for stage, value in result.hours.items()]
    table += [_row("PUT requests", result.puts, _count), _row("GET requests", result.gets, _count)]
    table.append(_row("money (USD)", result.money, lambda value: f"{value:,.2f}"))
    return table


def size(value: float) -> str:
    """Return bytes in the largest decimal unit that keeps a digit before the point."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def _cache_bytes(sizes: Sizes, work: Workload, tokens: Range, answers: Range) -> dict[str, Range]:
    layer = 2.0 * sizes.hidden
    states = tokens.scaled(work.captured_layers * layer).plus(answers.scaled(layer))
    flat = tokens.scaled(TOKEN_BYTES)
    result = {codec: states.scaled(ratio).plus(flat) for codec, ratio in CODEC_RATIO.items()}
    published = tokens.scaled((work.captured_layers + 1) * layer + PUBLISHED_TOKEN_BYTES)
    return {"published": published, **result}


def _hours(sizes: Sizes, work: Workload, hardware: Hardware, tokens: Range, answers: Range) -> dict[str, Range]:
    train = 1 / (hardware.train_tflops * 1e12 * hardware.devices * 3600)
    engine = 1 / (hardware.engine_tflops * 1e12 * hardware.devices * 3600)
    forward = 2.0 * sizes.parameters
    questions = _range(work.questions * work.question_tokens * 0.5, exact=False)
    return {
        "regenerate": answers.scaled(forward * engine),
        "cache": tokens.scaled(forward * train),
        "train": _train_flops(sizes, work, tokens, answers).scaled(work.passes * train),
        "evaluate": questions.scaled(forward * engine),
    }


def _moving(hours: Mapping[str, Range], cache: Range, passes: float, hardware: Hardware) -> dict[str, Range]:
    """Return the hours of stages that also move the cache: computing or moving, whichever takes longer."""
    once = cache.scaled(1 / (hardware.store_gb_per_second * 1e9 * 3600))
    return {**hours, "cache": hours["cache"].longer(once), "train": hours["train"].longer(once.scaled(passes))}


def _train_flops(sizes: Sizes, work: Workload, tokens: Range, answers: Range) -> Range:
    """Return the operations of one pass over the data: forward and backward are three times the forward."""
    positions = min(work.anchors * work.block, work.answer_tokens * work.block) * work.samples
    blocks = 6 * draft_parameters(sizes, work) * positions
    draft_head = 4 * sizes.vocabulary * sizes.hidden * positions  # frozen: no gradient of its weight
    context = tokens.scaled(6 * work.captured_layers * sizes.hidden**2)
    target_head = answers.scaled(2 * sizes.vocabulary * sizes.hidden)
    return _exact(blocks + draft_head).plus(context).plus(target_head)


def _money(hardware: Hardware, hours: Mapping[str, Range], store_bytes: Range, requests: tuple[Range, Range]) -> Range:
    puts, gets = requests
    total = store_bytes.scaled((hardware.storage_gb_month + hardware.egress_gb) / 1e9)
    for value in hours.values():
        total = total.plus(value.scaled(hardware.device_hour * hardware.devices))
    return total.plus(puts.scaled(hardware.put_per_1000 / 1000)).plus(gets.scaled(hardware.get_per_1000 / 1000))


def _range(value: float, exact: bool) -> Range:
    spread = 0.0 if exact else GUESS
    return Range(low=value * (1 - spread), mid=value, high=value * (1 + spread))


def _exact(value: float) -> Range:
    return _range(value, exact=True)


def _row(what: str, value: Range, text: Any) -> dict[str, Any]:
    return {"what": what, "estimate": text(value.mid), "low": text(value.low), "high": text(value.high)}


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _hours_text(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3f}"

"""What a plan will cost, before anything is spent: bytes, requests, hours and money, each with an interval.

Works from sizes and counts alone, so it needs neither the target nor the network. Before answers exist their length
is a guess and every number that hangs on it comes as an interval; once they exist the counts are exact.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from deepspec.artifacts import Spec
from deepspec.optimizers.orthogonal import orthogonal_flops
from deepspec.placement import PARTS_LIMIT
from deepspec.plan.decoding import decoding_hours, pass_seconds
from deepspec.ranges import NOTHING, Range
from deepspec.target_cache.sizes import CODEC_RATIO, CacheSize, Captured, cache_size, published_range

GUESS = 0.30
"""Half-width of the interval around a guessed token count, as a share of it."""

DEFAULT_CODEC, TOKENS_ONLY = "bf16-zstd", "none"
"""Codec of a cache where the plan stores none, for comparison; and the one that stores no states."""

ANSWER_TOKEN_BYTES = 4
"""Of prompts and answers in the store, compressed, for each token."""

LONGEST_DAYS = 60
"""What takes longer does not fit a machine, whatever the number is."""

SOURCES = ("cache", "online", "rolling")
"""Where training can take hidden states from with the plan's devices alone, see `TrainSpec.source`; `engine`, which
takes others beside them, is told of where the plan asks for it."""


SPECULATED = Range(low=1.0, mid=1.2, high=2.0)
"""How much longer answers take while states come with them: assumed, not measured on a card. A step works on two
positions of each answer instead of one: nothing where it waits for memory, twice where it computes."""


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
    reads_again: bool = False
    """Whether tokens can be taken back from its memory by reading the accepted ones again, and not otherwise."""


class Hardware(Spec):
    """A machine and its prices, in US dollars. One YAML file each under presets/hardware."""

    devices: int = Field(gt=0)
    train_tflops: float = Field(gt=0)
    """Sustained by one device in training and capture."""
    engine_tflops: float = Field(gt=0)
    """Sustained by one device while an engine generates in full batches."""
    device_memory_gb: float = Field(gt=0)
    device_gb_per_second: float = Field(gt=0)
    """At which one device reads its own memory."""
    layer_ms: float = Field(ge=0)
    """Of launching one layer of a pass, in milliseconds, see `deepspec/plan/decoding.py`."""
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


class SourceCost(Spec):
    """What cache and training take with one source of hidden states."""

    stored: Range
    """Bytes in the store."""
    egress: Range
    """Bytes that training reads from the store, all passes together."""
    local: Range
    """Bytes on the training machine's own disk."""
    cache_hours: Range
    train_hours: Range
    puts: Range
    gets: Range
    money: Range
    """Device hours of both stages, one month of storage, requests and egress, in US dollars."""


NO_COST = SourceCost(
    stored=NOTHING,
    egress=NOTHING,
    local=NOTHING,
    cache_hours=NOTHING,
    train_hours=NOTHING,
    puts=NOTHING,
    gets=NOTHING,
    money=NOTHING,
)
"""Of what is not made."""


class GreedyCost(Spec):
    """What greedy answers to held-out prompts take beside the others."""

    prompts: int
    """Conversations that an engine is asked once more."""
    engine_hours: Range
    cost: SourceCost
    """Of their states, and of the looks that walk over them."""


class Costs(Spec):
    """What a plan costs, stage by stage."""

    tokens: Range
    cache_bytes: Mapping[str, Range]
    """Per codec, and `published` for the layout of the public caches (all positions, raw bf16)."""
    sources: Mapping[str, SourceCost]
    """Source of hidden states -> what it takes, with the plan's codec."""
    greedy: GreedyCost | None = None
    """In all sums but those of `sources`; None: there are no greedy answers beside others."""
    store_bytes: Range
    """Everything published."""
    files: Range
    hours: Mapping[str, Range]
    """Per stage, on the given hardware."""
    puts: Range
    gets: Range
    money: Range
    """Device hours, one month of storage, requests and egress, in US dollars."""


def estimate(sizes: Sizes, work: Workload, hardware: Hardware) -> Costs:
    """Return the cost of a plan.

    Args:
        sizes: of the target.
        work: counts of the run.
        hardware: machine and prices.
    """
    found = {codec: cache_size(work.captured, ratio) for codec, ratio in work.ratios.items()}
    sources = {name: _source(name, found, sizes, work, hardware) for name in dict.fromkeys((*SOURCES, work.source))}
    chosen = sources[work.source]
    draft_bytes = 2.0 * (2 * sizes.vocabulary * sizes.hidden + draft_parameters(sizes, work))
    rest = work.captured.tokens.scaled(ANSWER_TOKEN_BYTES).plus(Range.around(4 * draft_bytes))
    engine = _engine_hours(sizes, work, hardware)
    greedy = _greedy(sizes, work, hardware) if work.greedy else None
    beside = NO_COST if greedy is None else greedy.cost
    if greedy is not None:
        engine["regenerate"] = engine["regenerate"].plus(greedy.engine_hours)
    hours = {
        "regenerate": engine["regenerate"],
        "cache": chosen.cache_hours.plus(beside.cache_hours),
        "train": chosen.train_hours.plus(beside.train_hours),
        "evaluate": engine["evaluate"],
    }
    money = chosen.money.plus(beside.money).plus(_month(rest, hardware))
    for value in engine.values():
        money = money.plus(value.scaled(hardware.device_hour * hardware.devices))
    codec = work.codec if work.source == "cache" else TOKENS_ONLY
    return Costs(
        tokens=work.captured.tokens,
        cache_bytes={"published": published_range(work.captured), **{name: size.bytes for name, size in found.items()}},
        sources=sources,
        greedy=greedy,
        store_bytes=chosen.stored.plus(beside.stored).plus(rest),
        files=found[codec].parts.scaled(2).plus(Range.around(2)),  # each part has a mark; index and manifest
        hours=hours,
        puts=chosen.puts.plus(beside.puts),
        gets=chosen.gets.plus(beside.gets),
        money=money,
    )


def draft_matrices(sizes: Sizes, work: Workload) -> list[tuple[int, int]]:
    """Return the matrices of the draft: those of its blocks, and the projection that fuses the captured layers."""
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    block = [(size, sizes.hidden) for size in (queries, queries, keys, keys, *[sizes.intermediate] * 3)]
    return [*block * work.draft_layers, (sizes.hidden, work.captured.layers * sizes.hidden)]


def draft_parameters(sizes: Sizes, work: Workload) -> float:
    """Return the trainable parameters of the draft, those of its matrices."""
    return float(sum(rows * columns for rows, columns in draft_matrices(sizes, work)))


def muon_flops(sizes: Sizes, work: Workload) -> float:
    """Return the operations by which Muon orthogonalises the draft's matrices in a step, whatever the batch."""
    rank, tables = work.refiner_rank, (sizes.vocabulary, work.draft_vocabulary or sizes.vocabulary)
    matrices = [*draft_matrices(sizes, work), *((table, rank) for table in tables if rank)]
    return sum(orthogonal_flops(*matrix) for matrix in matrices)


def rows(result: Costs) -> list[dict[str, Any]]:
    """Return the estimate as a table for people."""
    table = [_row("tokens", result.tokens, _count)]
    table += [_row(f"target cache, {name}", value, size) for name, value in result.cache_bytes.items()]
    table += [_row("files of the target cache", result.files, _count)]
    table.append(_row("store, all artifacts", result.store_bytes, size))
    table += [_row(f"{stage}: time", value, duration) for stage, value in result.hours.items()]
    table += [_row("PUT requests", result.puts, _count), _row("GET requests", result.gets, _count)]
    table.append(_row("money (USD)", result.money, _money_text))
    table += [] if result.greedy is None else _greedy_rows(result.greedy)
    for name, cost in result.sources.items():
        table.append(_row(f"source {name}: stored", cost.stored, size))
        table.append(_row(f"source {name}: read from the store", cost.egress, size))
        table.append(_row(f"source {name}: local disk", cost.local, size))
        table.append(_row(f"source {name}: time", cost.cache_hours.plus(cost.train_hours), duration))
        table.append(_row(f"source {name}: USD", cost.money, _money_text))
    return table


def _greedy_rows(greedy: GreedyCost) -> list[dict[str, Any]]:
    time = greedy.engine_hours.plus(greedy.cost.cache_hours).plus(greedy.cost.train_hours)
    return [
        _row("greedy held-out answers: prompts asked once more", Range.around(greedy.prompts), _count),
        _row("greedy held-out answers: stored", greedy.cost.stored, size),
        _row("greedy held-out answers: time", time, duration),
    ]


def size(value: float) -> str:
    """Return bytes in the largest decimal unit that keeps a digit before the point."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def duration(hours: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 41 h, 5 days; what is longer than two months is only that."""
    if hours > LONGEST_DAYS * 24:
        return f"over {LONGEST_DAYS} days"
    for unit, length, least in (("days", 24.0, 3), ("h", 1.0, 2), ("min", 1 / 60, 2)):
        if hours >= least * length:
            value = hours / length
            return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{hours * 3600:.0f} s"


def stored_codec(codec: str) -> str:
    """Return the codec of states that are stored whatever a plan does with those of its cache."""
    return DEFAULT_CODEC if codec == TOKENS_ONLY else codec


def _source(name: str, found: Mapping[str, CacheSize], sizes: Sizes, work: Workload, hardware: Hardware) -> SourceCost:
    """Return what one source takes. Without stored states the target runs in every pass, on the same devices."""
    rate = 1 / (hardware.train_tflops * 1e12 * hardware.devices * 3600)
    forward = work.captured.tokens.scaled(read_flops(sizes) * rate)
    compute = train_flops(sizes, work).scaled(work.passes * rate)
    tokens_only = found[TOKENS_ONLY]
    if name == "engine":
        return _from_engines(found, (forward, compute), work, hardware)
    if name != "cache":
        raw = found["bf16"].bytes
        local = raw.capped(PARTS_LIMIT) if name == "rolling" else NOTHING
        hours = (NOTHING, compute.plus(forward.scaled(work.passes)))
        return _priced(tokens_only, local, hours, 1, hardware)
    stored = found[stored_codec(work.codec)]
    once = stored.bytes.scaled(1 / (hardware.store_gb_per_second * 1e9 * 3600))
    reads = work.passes if stored.bytes.mid > PARTS_LIMIT else 1  # what fits its disk is fetched once
    hours = (forward.scaled(1 - work.with_answers).longer(once), compute.longer(once.scaled(work.passes)))
    return _priced(stored, stored.bytes.capped(PARTS_LIMIT), hours, reads, hardware)


def _greedy(sizes: Sizes, work: Workload, hardware: Hardware) -> GreedyCost:
    """Return what greedy answers to held-out prompts take: they are as long as the others, and stored in any case."""
    what = work.captured
    share = work.greedy / max(1, what.samples)
    lengths = {name: getattr(what, name).scaled(share) for name in ("tokens", "supervised", "last_rows")}
    beside = what.but(samples=work.greedy, **lengths)
    rate = 1 / (hardware.train_tflops * 1e12 * hardware.devices * 3600)
    passes = train_flops(sizes, work.but(captured=beside, anchors=work.walked)).scaled(work.looks / 3)
    hours = (beside.tokens.scaled(2.0 * sizes.parameters * rate), passes.scaled(rate))
    stored = cache_size(beside, work.ratios[stored_codec(work.codec)])
    engine = 2.0 * sizes.parameters / (hardware.engine_tflops * 1e12 * hardware.devices * 3600)
    return GreedyCost(
        prompts=work.greedy,
        engine_hours=beside.supervised.scaled(engine),
        cost=_priced(stored, stored.bytes.capped(PARTS_LIMIT), hours, 1, hardware),
    )


def _from_engines(
    found: Mapping[str, CacheSize], once: tuple[Range, Range], work: Workload, hardware: Hardware
) -> SourceCost:
    """Return what states of engines take, which run on as many devices again, while the draft is trained.

    Args:
        found: codec -> what it takes.
        once: hours of the target's forward pass over the data, and of all of training.
        work: counts of the run.
        hardware: machine and prices.
    """
    raw, (forward, compute) = found["bf16"].bytes, once
    hours = forward.scaled(1 if work.keep_states >= raw.mid else work.passes).longer(compute)
    cost = _priced(found[TOKENS_ONLY], raw.capped(work.keep_states), (NOTHING, hours), 1, hardware)
    beside = hours.scaled(hardware.device_hour * hardware.devices)
    return cost.model_copy(update={"money": cost.money.plus(beside)})


def _priced(
    stored: CacheSize, local: Range, hours: tuple[Range, Range], reads: float, hardware: Hardware
) -> SourceCost:
    gets, egress = stored.gets.scaled(reads), stored.bytes.scaled(reads)
    money = _month(stored.bytes, hardware).plus(egress.scaled(hardware.egress_gb / 1e9))
    money = money.plus(stored.puts.scaled(hardware.put_per_1000 / 1000)).plus(gets.scaled(hardware.get_per_1000 / 1000))
    for value in hours:
        money = money.plus(value.scaled(hardware.device_hour * hardware.devices))
    return SourceCost(
        stored=stored.bytes,
        egress=egress,
        local=local,
        cache_hours=hours[0],
        train_hours=hours[1],
        puts=stored.puts,
        gets=gets,
        money=money,
    )


def _engine_hours(sizes: Sizes, work: Workload, hardware: Hardware) -> dict[str, Range]:
    """Return the hours of an engine's full batches, which compute, and of evaluation, which decodes one by one."""
    engine = read_flops(sizes) / (hardware.engine_tflops * 1e12 * hardware.devices * 3600)
    answered = Range.around(work.questions * work.question_tokens * 0.5, GUESS)
    target = (sizes.layers, float(sizes.working or sizes.parameters))
    passes = [target, (work.draft_layers, draft_parameters(sizes, work)), *([target] if sizes.reads_again else [])]
    seconds = sum(
        pass_seconds(layers, work.weight_bytes * count, hardware.device_gb_per_second, hardware.layer_ms)
        for layers, count in passes
    )
    alone = Range.around(work.alone * work.question_tokens * 0.5 * seconds / 3600, GUESS)
    rate = hardware.train_tflops * 1e12 * hardware.devices * 3600
    read = Range.around((work.questions + work.alone) * work.prompt_tokens * read_flops(sizes) / rate, GUESS)
    decoded = decoding_hours(answered, seconds).plus(alone).plus(read)
    answers = work.captured.supervised.scaled(engine)
    return {"regenerate": answers.times(SPECULATED) if work.with_answers else answers, "evaluate": decoded}


def _month(stored: Range, hardware: Hardware) -> Range:
    return stored.scaled(hardware.storage_gb_month / 1e9)


def read_flops(sizes: Sizes) -> float:
    """Return the operations of the target's forward pass over one token."""
    return 2.0 * (sizes.working or sizes.parameters)


def train_flops(sizes: Sizes, work: Workload) -> Range:
    """Return the operations of one pass over the data: forward and backward are three times the forward."""
    what = work.captured
    positions = min(work.anchors, what.supervised.mid / max(1, what.samples)) * work.block * what.samples
    blocks = 6 * draft_parameters(sizes, work) * positions
    head = sizes.hidden * (work.draft_vocabulary or sizes.vocabulary)
    draft_head = 4 * head * positions  # frozen: no gradient of its weight
    context = what.tokens.scaled(6 * what.layers * sizes.hidden**2)
    target_head = what.supervised.scaled(2 * head)
    return Range.around(blocks + draft_head).plus(context).plus(target_head)


def _row(what: str, value: Range, text: Any) -> dict[str, Any]:
    return {"what": what, "estimate": text(value.mid), "low": text(value.low), "high": text(value.high)}


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _money_text(value: float) -> str:
    return f"{value:,.2f}"

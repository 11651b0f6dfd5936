"""What cache and training take with each source of hidden states, and what greedy answers take beside it."""

from collections.abc import Mapping

from deepspec.placement import PARTS_LIMIT
from deepspec.plan.cost.flops import read_flops, train_flops
from deepspec.plan.cost.found import GreedyCost, SourceCost
from deepspec.plan.cost.given import Hardware, Sizes, Workload
from deepspec.ranges import NOTHING, Range
from deepspec.target_cache.sizes import CacheSize, cache_size

DEFAULT_CODEC, TOKENS_ONLY = "bf16-zstd", "none"
"""Codec of a cache where the plan stores none, for comparison; and the one that stores no states."""

SOURCES = ("cache", "online", "rolling")
"""Where training can take hidden states from with the plan's devices alone, see `TrainSpec.source`; `engine`, which
takes others beside them, is told of where the plan asks for it."""


def stored_codec(codec: str) -> str:
    """Return the codec of states that are stored whatever a plan does with those of its cache."""
    return DEFAULT_CODEC if codec == TOKENS_ONLY else codec


def source_cost(
    name: str, found: Mapping[str, CacheSize], sizes: Sizes, work: Workload, hardware: Hardware
) -> SourceCost:
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


def greedy_cost(sizes: Sizes, work: Workload, hardware: Hardware) -> GreedyCost:
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
    money = month_of(stored.bytes, hardware).plus(egress.scaled(hardware.egress_gb / 1e9))
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


def month_of(stored: Range, hardware: Hardware) -> Range:
    """Return what it costs to store bytes for a month."""
    return stored.scaled(hardware.storage_gb_month / 1e9)

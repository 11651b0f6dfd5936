"""What a plan will cost, before anything is spent: bytes, requests, hours and money, each with an interval.

Works from sizes and counts alone, so it needs neither the target nor the network. Before answers exist their length
is a guess and every number that hangs on it comes as an interval; once they exist the counts are exact.
"""

import math

from deepspec.plan.cost.decoding import decoding_hours, pass_seconds
from deepspec.plan.cost.flops import draft_parameters, read_flops
from deepspec.plan.cost.found import NO_COST, Costs
from deepspec.plan.cost.given import Hardware, Sizes, Workload
from deepspec.plan.cost.sources import SOURCES, TOKENS_ONLY, greedy_cost, month_of, source_cost
from deepspec.ranges import Range
from deepspec.target_cache.sizes import cache_size, published_range

GUESS = 0.30
"""Half-width of the interval around a guessed token count, as a share of it."""

ANSWER_TOKEN_BYTES = 4
"""Of prompts and answers in the store, compressed, for each token."""

SPECULATED = Range(low=1.0, mid=1.2, high=2.0)
"""How much longer answers take while states come with them: assumed, not measured on a card. A step works on two
positions of each answer instead of one: nothing where it waits for memory, twice where it computes."""


def estimate(sizes: Sizes, work: Workload, hardware: Hardware) -> Costs:
    """Return the cost of a plan.

    Args:
        sizes: of the target.
        work: counts of the run.
        hardware: machine and prices.
    """
    found = {codec: cache_size(work.captured, ratio) for codec, ratio in work.ratios.items()}
    sources = {name: source_cost(name, found, sizes, work, hardware) for name in dict.fromkeys((*SOURCES, work.source))}
    chosen = sources[work.source]
    draft_bytes = 2.0 * (2 * sizes.vocabulary * sizes.hidden + draft_parameters(sizes, work))
    rest = work.captured.tokens.scaled(ANSWER_TOKEN_BYTES).plus(Range.around(4 * draft_bytes))
    engine = _engine_hours(sizes, work, hardware)
    greedy = greedy_cost(sizes, work, hardware) if work.greedy else None
    beside = NO_COST if greedy is None else greedy.cost
    if greedy is not None:
        engine["regenerate"] = engine["regenerate"].plus(greedy.engine_hours)
    hours = {
        "regenerate": engine["regenerate"],
        "cache": chosen.cache_hours.plus(beside.cache_hours),
        "train": chosen.train_hours.plus(beside.train_hours),
        "evaluate": engine["evaluate"],
    }
    money = chosen.money.plus(beside.money).plus(month_of(rest, hardware))
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
        devices=hardware.devices,
        weights_bytes=sizes.weights_bytes,
        weights_bits=sizes.weight_bits,
        devices_for_target=math.ceil(sizes.weights_bytes / (hardware.device_memory_gb * 1e9)),
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

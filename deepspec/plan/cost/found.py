"""What an estimate finds: bytes, hours, requests and money."""

from collections.abc import Mapping

from deepspec.ranges import NOTHING, Range
from deepspec.specs import Spec


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
    devices: int
    """Of the given hardware."""
    weights_bytes: float
    """Of the target in memory: in bf16, or as it is quantised."""
    weights_bits: float
    """Of one of its weights, on the average: 16, or fewer where it is quantised."""
    devices_for_target: int
    """Over so many devices of this memory its weights lie, at least."""

"""Samples whose states an engine gives, on their way into parts."""

from collections.abc import Sequence

from deepspec.cache.spec import CacheSpec
from deepspec.errors import SpecError
from deepspec.placement import Placement
from deepspec.report import Report
from deepspec.states.digest import digest_of
from deepspec.states.finish import finish_of
from deepspec.states.proof import Proof
from deepspec.states.source import EngineStates
from deepspec.states.wanted import Wanted
from deepspec.target.load import Target
from deepspec.target.samples import Item

PROBES = 3
"""Prompts by which an engine is proven before the first sample."""


def engine_states(
    spec: CacheSpec, target: Target, layers: Sequence[int], items: Sequence[Item], placement: Placement, report: Report
) -> EngineStates:
    """Return engines that give the states of a cache, proven by some of its own samples once they are entered.

    Args:
        spec: of the cache.
        target: in memory, or described.
        layers: captured layers.
        items: samples of a shard, at least one.
        placement: endpoints.
        report: who listens.

    Raises:
        SpecError: the spec does not say of which version they are to be.
    """
    if spec.engine_version is None:
        raise SpecError("cache.states=vllm without cache.engine_version: which engine is part of what a cache is")
    wanted = Wanted(
        layers=tuple(layers),
        num_layers=target.num_layers,
        hidden_size=target.hidden_size,
        dtype=str(target.dtype).removeprefix("torch."),
        engine_version=spec.engine_version,
        quantization=spec.engine_quantization or (None if target.quantization else ""),
        model=digest_of(target.folder),
    )
    proof = Proof(wanted=wanted, finish=finish_of(target), target=None if target.embed_weight.is_meta else target)
    by_length = sorted(items, key=lambda item: (item.length, item.sample.sample_id))
    chosen = {len(by_length) * n // PROBES for n in range(PROBES)}
    return EngineStates(proof, placement, [by_length[n].sample.input_ids for n in sorted(chosen)], report)

"""Engines that give the states of some samples, for whoever wants them: a cache, or training."""

from collections.abc import Sequence
from typing import Protocol

from deepspec.errors import SpecError
from deepspec.gathering.asking import PROBES
from deepspec.gathering.source import EngineStates
from deepspec.passes.samples import Item
from deepspec.placement import Placement
from deepspec.report import Report
from deepspec.states.digest import digest_of
from deepspec.states.proof import Proof
from deepspec.states.target_end import target_end
from deepspec.states.wanted import Wanted
from deepspec.target.load import Target


class Named(Protocol):
    """Which engine is wanted: fields that the specs of stages have."""

    @property
    def engine_version(self) -> str | None:
        """Return its version."""

    @property
    def engine_quantization(self) -> str | None:
        """Return how it quantises a target whose checkpoint is not."""


def engine_states(
    spec: Named, target: Target, layers: Sequence[int], items: Sequence[Item], placement: Placement, report: Report
) -> EngineStates:
    """Return engines that give states, proven by some of the samples once they are entered.

    Args:
        spec: which engine.
        target: in memory, or described.
        layers: captured layers.
        items: some of the samples, at least one.
        placement: endpoints.
        report: who listens.

    Raises:
        SpecError: the spec does not say of which version they are to be.
    """
    by_length = sorted(items, key=lambda item: (item.length, item.sample.sample_id))
    chosen = {len(by_length) * n // PROBES for n in range(PROBES)}
    probes = [by_length[n].sample.input_ids for n in sorted(chosen)]
    return EngineStates(proof_of(spec, target, layers), placement, probes, report)


def proof_of(spec: Named, target: Target, layers: Sequence[int]) -> Proof:
    """Return what an engine's states are to be, and what they are held against.

    Args:
        spec: which engine.
        target: in memory, or described.
        layers: captured layers.

    Raises:
        SpecError: the spec does not say of which version it is to be.
    """
    if spec.engine_version is None:
        raise SpecError(
            "states of an engine without its version (cache.engine_version, train.engine_version), which is part of "
            "what is made of them"
        )
    wanted = Wanted(
        layers=tuple(layers),
        num_layers=target.num_layers,
        hidden_size=target.hidden_size,
        dtype=str(target.dtype).removeprefix("torch."),
        engine_version=spec.engine_version,
        quantization=spec.engine_quantization or (None if target.quantization else ""),
        model=digest_of(target.folder),
    )
    return Proof(wanted=wanted, end=target_end(target), target=None if target.embed_weight.is_meta else target)

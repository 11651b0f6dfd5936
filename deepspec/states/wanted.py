"""Which states are wanted of an engine, and what it must say of itself. No torch: command lines are made from it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from pydantic import ByteSize

from deepspec.errors import EngineError
from deepspec.formats.tensor_heads import VALUE_BYTES
from deepspec.specs import Spec

FORMAT = "deepspec.states"
VERSION = "1"

RESTART = "start it with what `deepspec engine-args` prints for this plan"


def layer_ids(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return what an engine calls our layers, and behind them the state before its final norm, each once.

    Its id 0 is the embedding output and id n what decoder layer n - 1 puts out, so our layer k is its id k + 1. The
    state behind the norm is none of its: it is made of the one before.

    Args:
        layers: captured layers in order; -1 is the embedding output, `num_layers` the state behind the final norm.
        num_layers: decoder layers of the target.
    """
    return (*(layer + 1 for layer in layers if layer + 1 < num_layers), num_layers)


class WhileAnswering(Spec):
    """States that are asked for with the answers: what the options of a cache say of them."""

    layers: tuple[int, ...] | None
    dtype: str
    engine_version: str | None
    engine_quantization: str | None
    max_length: int
    """Tokens of a sample."""
    splits: tuple[str, ...]
    keep_states: ByteSize | None
    """Bytes that may be kept; None: as much as there is room for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What states must be of, for a cache's spec."""

    layers: tuple[int, ...]
    num_layers: int
    hidden_size: int
    dtype: str
    """In which the engine computes."""
    engine_version: str
    quantization: str | None
    """How the engine holds the weights; empty: as floating point; None: as the checkpoint has them, however the engine
    calls that."""
    model: str
    """`digest_of` the target's folder."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Return the layers as the engine counts them."""
        return layer_ids(self.layers, self.num_layers)

    def place_of(self, layer: int) -> int | None:
        """Return where a layer lies among the engine's; None: it is the state behind the final norm, which is not."""
        return None if layer == self.num_layers else self.ids.index(layer + 1)

    @property
    def digest(self) -> str:
        """Return a short name for what they are of."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:12]

    def bytes_of(self, tokens: int) -> int:
        """Return the bytes of the states of so many tokens."""
        return tokens * len(self.ids) * self.hidden_size * VALUE_BYTES[self.dtype]

    def check(self, told: Mapping[str, str], label: str) -> None:
        """Hold what an engine says of its states against what is wanted.

        Args:
            told: the metadata of a file.
            label: of the engine, for messages.

        Raises:
            EngineError: it is another model, precision, version, or set of layers; or not our connector.
        """
        if told.get("format") != FORMAT or told.get("version") != VERSION:
            raise EngineError(f"engine {label} writes states by another connector than ours; {RESTART}")
        wanted = {
            "model": self.model,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "engine_version": self.engine_version,
            "layer_ids": ",".join(map(str, self.ids)),
        }
        for name, value in wanted.items():
            if value is not None and told.get(name) != value:
                raise EngineError(f"engine {label}: {_SAID[name].format(found=told.get(name) or 'none', wanted=value)}")


_SAID: Mapping[str, str] = {
    "model": "it serves another model than the target (digest {found}, the target's is {wanted}), or its weights have "
    f"changed since; {RESTART}",
    "dtype": f"it computes in {{found}}, wanted {{wanted}}; {RESTART}, or set cache.dtype to its precision",
    "quantization": "its weights are quantised as {found}, wanted {wanted!r}; set cache.engine_quantization, or "
    f"{RESTART}",
    "engine_version": "it is version {found}, the cache is made of states of version {wanted}; start that one, or set "
    "cache.engine_version, which makes another cache",
    "layer_ids": f"it gives layers {{found}} (as it counts), wanted {{wanted}}; {RESTART}",
}

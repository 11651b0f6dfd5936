"""Which layers of a target are captured. No torch: a plan is checked by it."""

from collections.abc import Sequence

from deepspec.errors import TargetError

EMBEDDING = -1
"""Layer id of the embedding output, as it is fed to layer 0 (scaled where the family scales it)."""


def normed(num_layers: int) -> int:
    """Return the layer id of the state behind the final norm, which the head reads: one past the last layer's."""
    return num_layers


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers captured where nothing else is said: 5, evenly from 1 to L - 4, halves rounded to even.

    Shallow targets give fewer; the last layer is never among them.
    """
    first = min(1, num_layers - 2)
    last = max(first, num_layers - 4)
    return tuple(sorted({round(first + step * (last - first) / 4) for step in range(5)}))


def check_layers(layers: Sequence[int], num_layers: int, *, last: bool = False) -> None:
    """Check that the layers exist, are in order, and leave out the last one.

    Args:
        layers: their ids.
        num_layers: of the target.
        last: whether the last one is allowed, and one past it, the state behind the final norm: MTP heads read one of
            them.

    Raises:
        TargetError: they do not.
    """
    most = normed(num_layers) if last else num_layers - 2
    wanted = f"wanted ascending ids from -1 (embedding output) to {most}, each once"
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < EMBEDDING or layers[-1] > most:
        raise TargetError(f"cannot capture layers {list(layers)} of a target with {num_layers} layers; {wanted}")

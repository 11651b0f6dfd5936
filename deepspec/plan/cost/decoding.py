"""How long decoding takes here, question by question: bytes moved and launches, never arithmetic.

A pass over a few tokens reads every weight once, and starts the kernels of every layer one after another; the longer of
the two is what it takes. The constants of `presets/hardware` rest on one measurement, a 4B target of 36 layers in bf16
on an H200 at batch 1, its rounds recorded (docs/adr/0020): 4.7 ms a plain token, 6.9 ms a DSpark round (5.1 ms verify,
1.6 ms the draft), where reading the weights alone takes 1.9 ms. That is 0.13 ms a layer of kernels, for every card.
Started one by one they took 0.84 ms a layer: so still decode targets with a memory of their own, or spread over cards.
On CPUs launches are nothing beside weights: SmolLM2-135M in fp32 makes 15 plain tokens a second on two cores, 8 GB/s.
"""

from deepspec.ranges import Range

ACCEPTED = Range(low=1.5, mid=3.0, high=5.0)
"""Tokens of a round that a draft may be expected to give, before it is measured."""


def pass_seconds(layers: int, weight_bytes: float, gb_per_second: float, layer_ms: float) -> float:
    """Return how long a pass over the few tokens of a round takes.

    Args:
        layers: of the model.
        weight_bytes: of all its weights, as they are read.
        gb_per_second: of the device's memory.
        layer_ms: of a layer's kernels, one after another, in milliseconds.
    """
    return max(weight_bytes / (gb_per_second * 1e9), layers * layer_ms / 1000)


def decoding_hours(tokens: Range, round_seconds: float) -> Range:
    """Return how long it takes to decode tokens in rounds of so many seconds; few accepted tokens take longest."""
    return Range(
        low=tokens.low / ACCEPTED.high * round_seconds / 3600,
        mid=tokens.mid / ACCEPTED.mid * round_seconds / 3600,
        high=tokens.high / ACCEPTED.low * round_seconds / 3600,
    )

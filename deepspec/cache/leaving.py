"""States on their way from the forward pass to a part: off a card while it goes on, encoded by a pool, in order.

On a card what a codec keeps of the states is made there, on a stream of its own, and crosses into pinned memory: of fp8
half the bytes, of the last states those alone that can supervise. The pass waits for none of it. On a CPU the same is
done by the pool. Bytes are those of one thread, since a sample is encoded by itself and parts take them in order.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from deepspec.kernels import stream_beside
from deepspec.passes.samples import Item, check_each_finite, finite, supervising
from deepspec.target_cache.codec import CODECS
from deepspec.target_cache.part import Encoded, planes_of

MOST_ENCODERS = 8
"""Threads beside a card, at most: one encodes some 385 MB/s of a lossless cache, and a 4B target makes 1.5 GB/s."""
BYTES_WAITING = 2 << 30
"""Of states that have left a pass and are not written yet."""
LEAST_WAITING = 4
"""Passes whose states may wait in any case."""


@dataclass(frozen=True, slots=True)
class Left:
    """What a codec keeps of a sample's states, in the host's memory or on the way there."""

    planes: tuple[Tensor, ...]
    good: Tensor
    """What `finite` found."""
    width: int
    """D."""


class Leaving:
    """Takes states from forward passes and gives encoded samples. Use as a context manager.

    Args:
        codec: name in `CODECS`.
        layers: captured layers.
        device: of the target, where its states lie.
    """

    def __init__(self, codec: str, layers: Sequence[int], device: torch.device) -> None:
        """Start the pool: one thread beside a CPU, whose cores the pass has; more beside a card."""
        self._codec, self._layers = CODECS[codec], layers
        beside_a_card = min(MOST_ENCODERS, max(1, (os.cpu_count() or 1) - 2))
        self.encoders = beside_a_card if device.type == "cuda" else 1
        """Threads."""
        self._pool = ThreadPoolExecutor(self.encoders, "encoder", partial(_begin, device))

    def take(self, batch: Sequence[Item], hidden: Tensor, last: Tensor) -> list[Future[Encoded]]:
        """Return the samples of a pass, to be encoded: `hidden` is `(B, T, A·D)`, `last` `(B, T, D)`."""
        if hidden.device.type != "cuda":
            rows = zip(batch, hidden, last, strict=True)
            return [self._pool.submit(self.encoded, item, states, final) for item, states, final in rows]
        side = stream_beside(hidden.device, "states off a card")
        side.wait_stream(torch.cuda.current_stream(hidden.device))
        with torch.cuda.stream(side):
            left = [_sent_all(self._left(*row)) for row in zip(batch, hidden, last, strict=True)]
            there = side.record_event(torch.cuda.Event(blocking=True))  # who waits for it sleeps, and takes no core
        for tensor in (hidden, last):
            tensor.record_stream(side)
        return [
            self._pool.submit(self._encoded_there, item, each, there) for item, each in zip(batch, left, strict=True)
        ]

    def encoded(self, item: Item, hidden: Tensor, last: Tensor) -> Encoded:
        """Return a sample of this machine's memory, encoded by the caller: `(T, A·D)` and `(T, D)`."""
        return self._encoded(item, self._left(item, hidden, last))

    def depth(self, pass_bytes: int) -> int:
        """Return how many passes' states may wait, each of so many bytes."""
        return max(LEAST_WAITING, min(2 * self.encoders, BYTES_WAITING // max(pass_bytes, 1)))

    def _left(self, item: Item, hidden: Tensor, last: Tensor) -> Left:
        """Return what is kept of a sample, where it lies."""
        kept = [states.to(torch.bfloat16) for states in _kept(item, hidden, last)]
        return Left(tuple(self._codec.planes(planes_of(*kept))), finite(*kept), last.shape[-1])

    def _encoded_there(self, item: Item, left: Left, there: torch.cuda.Event) -> Encoded:
        there.synchronize()
        return self._encoded(item, left)

    def _encoded(self, item: Item, left: Left) -> Encoded:
        sample = item.sample
        check_each_finite(sample.sample_id, left.good, self._layers)
        block = self._codec.packed([plane.numpy() for plane in left.planes])
        ids, mask = torch.tensor(sample.input_ids), torch.tensor(sample.loss_mask)
        return Encoded(sample.sample_id, ids, mask, block, left.width)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the threads; what has not begun is given up after an error."""
        self._pool.shutdown(cancel_futures=error is not None)


def _begin(device: torch.device) -> None:
    """Begin a thread: which card is current is each thread's own, and the first one unless it is told."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def _kept(item: Item, hidden: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sample's states without padding, of the last ones those that can supervise."""
    places = supervising(item)  # counted by the host: it would wait for a card
    if last.device.type == "cuda":
        places = places.pin_memory().to(last.device, non_blocking=True)
    return hidden[: item.length], last.index_select(0, places)


def _sent_all(left: Left) -> Left:
    return Left(tuple(_sent(plane) for plane in left.planes), _sent(left.good), left.width)


def _sent(tensor: Tensor) -> Tensor:
    """Return a tensor on its way into pinned memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

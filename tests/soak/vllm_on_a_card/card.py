"""A card that does its work late: what is put on its streams happens when it is let go, in order.

Tensors that lie on it are ordinary ones that say so. What reads them before an event has come sees what
memory held: NaN.
Needs torch alone: vLLM's interpreter has nothing of ours.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event as Flag
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda", 0)
GO = Flag()
"""Whether the card works."""
_ONE = RLock()


class Stream:
    """Work in order."""

    def __init__(self, _device: Any = None) -> None:
        self.work: deque[Callable[[], object]] = deque()

    def wait_event(self, event: "Event") -> None:
        self.work.append(event.synchronize)

    def run_to(self, event: "Event") -> None:
        with _ONE:
            while not event.over and self.work:
                self.work.popleft()()


class Event:
    """A place in a stream; asking does not move it, waiting does, once the card works."""

    def __init__(self, **_: Any) -> None:
        self.over, self._stream = False, MAIN

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or NOW[-1]
        self._stream.work.append(self._come)

    def _come(self) -> None:
        self.over = True

    def query(self) -> bool:
        return self.over

    def synchronize(self) -> None:
        if not GO.wait(30):
            raise RuntimeError("the card has hung")
        self._stream.run_to(self)


MAIN = Stream()
NOW = [MAIN]
"""Streams that are current, the innermost last."""


@contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    NOW.append(chosen)
    try:
        yield
    finally:
        NOW.pop()


def there(tensor: Tensor) -> Tensor:
    """Return a tensor that lies on the card."""
    tensor.on_card = True  # type: ignore[attr-defined]
    return tensor


def lies_there(value: Any) -> bool:
    return isinstance(value, Tensor) and getattr(value, "on_card", False)


class Card(TorchFunctionMode):
    """Puts copies and reads by index on the current stream; pinned memory is what `pin_memory=True` asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first: Any = args[0] if args else None
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__ and lies_there(first):
            return DEVICE
        if name == "to" and kwargs.get("device") == DEVICE:
            return there(first.clone())
        if kwargs.pop("pin_memory", False):
            self.pinned.append(torch.full(first.shape, float("nan"), dtype=first.dtype))
            return self.pinned[-1]
        if name == "copy_" and lies_there(args[1]):
            NOW[-1].work.append(lambda: func(*args))
            return first
        if name == "__getitem__" and lies_there(first) and isinstance(args[1], tuple):
            return self._gathered(func, *args)
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and any(map(lies_there, args)):
            there(made)
        return made

    def _gathered(self, func: Any, source: Tensor, index: Any) -> Tensor:
        strangers = [each for each in index if isinstance(each, Tensor) and not lies_there(each)]
        assert not strangers, "an index of the host in a tensor of the card"
        made = torch.full_like(func(source, index), float("nan"))
        NOW[-1].work.append(lambda: made.copy_(func(source, index)))
        return there(made)


@contextmanager
def card() -> Iterator[Card]:
    """Have the block compute beside a card that has not begun to work."""
    GO.clear()
    MAIN.work.clear()
    kept = torch.cuda.Stream, torch.cuda.Event, torch.cuda.stream
    torch.cuda.Stream, torch.cuda.Event, torch.cuda.stream = Stream, Event, stream  # type: ignore[assignment,misc]
    try:
        with Card() as made:
            yield made
    finally:
        GO.set()
        torch.cuda.Stream, torch.cuda.Event, torch.cuda.stream = kept  # type: ignore[misc]

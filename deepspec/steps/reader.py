"""Reads the steps of a stream ahead of the loop, so that the loop moves and computes and does nothing else.

Of each step two things are read. First, of all its samples, token ids and masks: they say what is supervised, in which
order, and by what the losses are divided, all on the host. Then the states, micro-batch by micro-batch, by several
threads (zstd and numpy free the interpreter), into memory from which a card fetches by itself. States read ahead are
bounded by bytes, not by steps: a step of a large target does not fit into memory as a whole.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from deepspec.algorithms.base import PassWork
from deepspec.records.batch import Batch, Tokens, collate_states, collate_tokens, each_tensor, on_device
from deepspec.records.stream import PackedRow, Samples, Share, read_record, read_tokens

STEPS_AHEAD = 2
"""Steps that are begun beyond the one that is computed, at most."""

ASKED_AHEAD = 1024
"""Samples of which an engine hears ahead, where their bytes allow it: twice what it takes at a time."""

Supervise = Callable[[Tokens, Sequence[int]], Any]
"""`supervise(tokens, keys)` returns what is supervised in rows of samples; its `denominators` sum up over a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervised:
    """The tokens of one forward pass, and what is supervised in them, in host memory."""

    tokens: Tokens
    supervision: Any

    @property
    def denominators(self) -> dict[str, Tensor]:
        """Return what sums up over micro-batches and ranks to the denominators of the losses."""
        found: dict[str, Tensor] = self.supervision.denominators
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one forward pass is computed from."""

    batch: Batch
    supervision: Any

    def to(self, device: torch.device, dtype: torch.dtype) -> "MicroBatch":
        """Return it on a device, its states in a dtype."""
        return MicroBatch(batch=self.batch.to(device, dtype), supervision=on_device(self.supervision, device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimizer step, as one rank reads it."""

    supervised: tuple[Supervised, ...]
    """Its micro-batches without their states."""
    states: Iterator[tuple[Tensor, Tensor]]
    """Their states, read ahead, in the same order."""
    tokens: int
    """Of the global batch."""

    @property
    def sample_ids(self) -> list[str]:
        """Return the ids of its samples."""
        return [name for part in self.supervised for name in part.tokens.sample_ids]

    @property
    def work(self) -> PassWork:
        """Return the work of this rank's share."""
        first, *rest = (part.supervision.work for part in self.supervised)
        work: PassWork = sum(rest, first)
        return work

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Yield its micro-batches, each once."""
        for part, states in zip(self.supervised, self.states, strict=True):
            yield MicroBatch(batch=part.tokens.with_states(*states), supervision=part.supervision)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How far and how wide to read ahead; it changes no result."""

    workers: int = 1
    """Threads."""
    bytes_ahead: int = 1 << 30
    """Bytes of states that are read, or being read, and not asked for yet; the next micro-batch is read in any case."""
    steps_told: int = 0
    """Steps beyond those begun of which the samples hear that they are read next: where they have to be made first."""
    pinned: bool = False
    """Whether into memory from which a card fetches while the host goes on."""


@dataclass(kw_only=True, slots=True)
class Reader:
    """Reads what a rank computes of consecutive steps.

    An error in a thread is raised in the loop, where what could not be read is asked for.
    """

    samples: Samples
    share: Callable[[int], Share]
    """Step -> what this rank computes of it; asked in the loop's own thread."""
    supervise: Supervise
    pace: Pace = field(default_factory=Pace)
    waited: float = field(default=0.0, init=False)
    """Seconds that the loop has waited."""

    def steps(self, start: int, end: int) -> Generator[Step, None, None]:
        """Yield the steps start to end - 1; each one's micro-batches have to be taken before the next is asked for."""
        pool = ThreadPoolExecutor(self.pace.workers, thread_name_prefix="reader")
        try:
            ahead = ReadAhead(self, pool, range(start, end))
            for _ in range(start, end):
                planned = ahead.next_step()
                supervised = tuple(self._wait(future) for future in planned.futures)
                yield Step(supervised=supervised, states=self._states(ahead, len(supervised)), tokens=planned.tokens)
        finally:
            pool.shutdown(cancel_futures=True)

    def _states(self, ahead: "ReadAhead", count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(count):
            yield self._wait(ahead.next_states())

    def _wait(self, future: Future[Any]) -> Any:
        begin = time.perf_counter()
        result = future.result()
        self.waited += time.perf_counter() - begin
        return result

    def read(self, rows: Sequence[PackedRow]) -> MicroBatch:
        """Return the micro-batch of some rows, read now."""
        part = self.plan(rows)
        return MicroBatch(batch=part.tokens.with_states(*self.load(rows)), supervision=part.supervision)

    def plan(self, rows: Sequence[PackedRow]) -> Supervised:
        """Return the tokens of some rows, and what is supervised in them."""
        ids = [[self.samples.sample_id(draw.number) for draw in row] for row in rows]
        tokens = collate_tokens(ids, [[read_tokens(self.samples, draw.number) for draw in row] for row in rows])
        found = Supervised(
            tokens=tokens, supervision=self.supervise(tokens, [draw.key for row in rows for draw in row])
        )
        return each_tensor(found, Tensor.pin_memory) if self.pace.pinned else found

    def load(self, rows: Sequence[PackedRow]) -> tuple[Tensor, Tensor]:
        """Return the states of some rows."""
        records = [[read_record(self.samples, draw.number) for draw in row] for row in rows]
        return collate_states(records, pinned=self.pace.pinned)

    def size(self, rows: Sequence[PackedRow]) -> int:
        """Return the bytes that the states of some rows take, padding included."""
        return padded_bytes(self.samples, rows)


def steps_told(engines: int, batch: int) -> int:
    """Return the steps of which samples hear ahead where engines make them, of so many samples each."""
    return math.ceil(ASKED_AHEAD * max(1, engines) / batch)


def padded_bytes(samples: Samples, rows: Sequence[PackedRow]) -> int:
    """Return the bytes that the states of some rows take in a batch, padding included."""
    longest = max(sum(samples.length(draw.number) for draw in row) for row in rows)
    return len(rows) * longest * samples.state_bytes


class Reads(Protocol):
    """What `ReadAhead` has read: a `Reader`, or one in the time of a simulation."""

    @property
    def samples(self) -> Samples:
        """Return the samples."""

    @property
    def share(self) -> Callable[[int], Share]:
        """Return what tells the rows of a step."""

    @property
    def pace(self) -> Pace:
        """Return how far and how wide to read ahead."""

    def plan(self, rows: Sequence[PackedRow], /) -> Any:
        """Return what is known of some rows without their states."""

    def load(self, rows: Sequence[PackedRow], /) -> Any:
        """Return their states."""

    def size(self, rows: Sequence[PackedRow], /) -> int:
        """Return the bytes of those."""


class Pool(Protocol):
    """Where it is read: threads, or what stands for them."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Begin a call, and return what becomes of it."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A step whose tokens are being read."""

    futures: list[Any]
    """What `plan` makes of its micro-batches."""
    tokens: int
    """Of the global batch."""


class ReadAhead:
    """What is under way: plans of the steps begun, and states of the micro-batches that come next.

    Args:
        reader: reads.
        pool: where.
        steps: numbers of the steps.
    """

    def __init__(self, reader: Reads, pool: Pool, steps: range) -> None:
        """Begin the first step."""
        self._reader, self._pool = reader, pool
        self._steps = iter(steps)
        self._told: deque[Share] = deque()
        """Steps of which the samples have heard, not begun yet."""
        self._planned: deque[Planned] = deque()
        self._waiting: deque[Sequence[PackedRow]] = deque()
        """Micro-batches of the steps begun whose states are not being read yet."""
        self._loading: deque[tuple[int, Any]] = deque()
        self._bytes = 0
        self._begin()

    def next_step(self) -> Planned:
        """Return the plans of the next step."""
        if not self._planned:
            self._begin()
        self._fill()
        return self._planned.popleft()

    def next_states(self) -> Any:
        """Return what `load` makes of the next micro-batch."""
        self._fill()
        size, future = self._loading.popleft()
        self._bytes -= size
        self._fill()
        return future

    def _begin(self) -> None:
        """Plan one more step, if there is one."""
        self._tell()
        if self._told:
            share = self._told.popleft()
            plans = [self._pool.submit(self._reader.plan, rows) for rows in share.pieces]
            self._planned.append(Planned(plans, share.tokens))
            self._waiting.extend(share.pieces)

    def _tell(self) -> None:
        """Let the samples hear what is read next."""
        while len(self._told) <= self._reader.pace.steps_told:
            number = next(self._steps, None)
            if number is None:
                return
            share = self._reader.share(number)
            self._told.append(share)
            self._reader.samples.ahead([draw.number for rows in share.pieces for row in rows for draw in row])

    def _fill(self) -> None:
        """Read on, as far as there is room; the next micro-batch in any case."""
        while True:
            if not self._waiting and len(self._planned) <= STEPS_AHEAD:
                self._begin()
            if not self._waiting:
                return
            size = self._reader.size(self._waiting[0])
            if self._loading and self._bytes + size > self._reader.pace.bytes_ahead:
                return
            self._loading.append((size, self._pool.submit(self._reader.load, self._waiting.popleft())))
            self._bytes += size

"""A cache whose states engines give while it is read: training on states as they are made.

The cache holds samples and their order, as a cache of tokens only does (`cache.codec=none`). What is read next is asked
for ahead, and read in that order; see `deepspec.gathering.ahead`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from deepspec.artifacts import Artifact
from deepspec.chat.template import Sample
from deepspec.errors import SourceError
from deepspec.gathering.ahead import Ahead, Coming, rooms
from deepspec.gathering.asked import Named, engine_states
from deepspec.gathering.asking import PROBES
from deepspec.gathering.kept import Kept
from deepspec.gathering.source import EngineStates
from deepspec.passes.samples import Item, check_finite, to_record
from deepspec.placement import Placement
from deepspec.records.batch import Record
from deepspec.report import Report
from deepspec.target.load import Target, describe_target, load_fitting, located
from deepspec.target_cache.cache import TargetCache, stored_parts
from deepspec.target_cache.facts import CacheFacts
from deepspec.target_cache.fetch import BoundedFolder, PartSource
from deepspec.target_cache.sizes import BF16_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class StatesRoom:
    """What states may take in one process."""

    ahead: int
    """Bytes asked for, or made, and not read yet."""
    folder: Path
    """Where states are kept."""
    kept: int
    """Bytes that may be kept there; 0: none."""
    sharers: int
    """Processes that share the folder."""
    proves: bool
    """Whether this one holds states against the target in memory: one of a machine is enough."""


class EngineCache(TargetCache):
    """A cache whose states engines give, which have to be set, and entered, before the first is read.

    Args:
        artifact: the cache.
        parts: its parts, of which tokens are read.
        room: what states may take.
    """

    engines: EngineStates

    def __init__(self, artifact: Artifact, parts: PartSource, room: StatesRoom) -> None:
        """Ask for nothing yet."""
        super().__init__(artifact, room.folder, parts=parts)
        self.kept = Kept(room.folder, room.kept, room.sharers)
        self.asked = 0
        """Samples that engines were asked for."""
        self._proven = _shortest_of_shards(self)
        self._held_out = frozenset(self.numbers("validation").tolist())
        self._queues: dict[str, Ahead[Record | None]] = {
            split: Ahead(self._ask, self._size, limit) for split, limit in rooms(room.ahead).items()
        }

    def ahead(self, split: str, numbers: Sequence[int]) -> None:
        """Hear which samples of a split are read next, in this order, and ask for them as far as there is room."""
        self._queues[split].expect(numbers)

    def item(self, number: int) -> Item:
        """Return a sample without states."""
        ids, mask = self.tokens(number)
        sample = Sample(sample_id=self.index.sample_id(number), input_ids=ids.tolist(), loss_mask=mask.bool().tolist())
        return Item(sample=sample, split="")

    def note(self) -> str:
        """Return in a few words how far engines are ahead, and how long they waited."""
        level = self._queues["train"].level
        told = (
            f"{level.ready / 1e9:.1f} of {level.limit / 1e9:.1f} GB ahead, engines waited {level.makers_waited:.0f} s"
        )
        return f"{told}, {self.kept.read} samples kept" if self.kept.read else told

    def told(self) -> list[str]:
        """Return what was asked for and what was not."""
        waited = self._queues["train"].level.makers_waited
        damaged = f", {self.kept.damaged} kept ones were damaged and asked for again" if self.kept.damaged else ""
        return [
            *super().told(),
            f"states of engines: {self.asked} samples asked for, {self.kept.read} read from those kept{damaged}; "
            f"engines had nothing to do for {waited:.1f} s while states waited to be trained on",
        ]

    def _record(self, number: int) -> Record:
        found = self._queues["validation" if number in self._held_out else "train"].take(number)
        if found is None:
            found = self.kept.get(self.index.sample_id(number), *self.tokens(number))
        return self._from_engines(number).result() if found is None else found

    def _ask(self, number: int) -> Coming[Record | None]:
        """Have a sample made; what is kept is read when it is taken."""
        if not self.kept.has(self.index.sample_id(number)):
            return self._from_engines(number)
        here: Future[Record | None] = Future()
        here.set_result(None)
        return here

    def _from_engines(self, number: int) -> Future[Record]:
        self.asked += 1
        return self.engines.take(self.item(number), self._made, against_target=number in self._proven)

    def _made(self, item: Item, hidden: Tensor, last: Tensor) -> Record:
        record = to_record(item, hidden, last)
        check_finite(record, self.facts.layers)
        self.kept.put(record)
        self.engines.written(item)
        return record

    def _size(self, number: int) -> int:
        if self.kept.has(self.index.sample_id(number)):
            return 0
        return int(self.index.lengths[number]) * (len(self.facts.layers) + 1) * self.facts.hidden_size * BF16_BYTES


@contextmanager
def engine_cache(
    artifact: Artifact, spec: Named, room: StatesRoom, placement: Placement, report: Report
) -> Iterator[EngineCache]:
    """Yield a cache whose states engines give; every engine is proven before.

    Args:
        artifact: the published cache.
        spec: which engine.
        room: what states may take.
        placement: endpoints, scratch and its limit, and where the target lies.
        report: who listens.

    Raises:
        SourceError: the cache has no sample to train on.
        EngineError: no engine answers, or one gives what is not wanted.
        TargetError: the target is not where the placement says, or is another one.
    """
    facts = CacheFacts.model_validate(artifact.counts)
    target = _target(facts, room, placement)
    stored = stored_parts(artifact, BoundedFolder(placement.scratch / "fetched" / "parts", placement.parts_limit))
    cache = EngineCache(artifact, stored, room)
    with engine_states(spec, target, facts.layers, _probes(cache), placement, report) as cache.engines:
        yield cache


def _target(facts: CacheFacts, room: StatesRoom, placement: Placement) -> Target:
    if room.proves:
        return load_fitting(facts.target, placement, facts.dtype)
    return describe_target(located(facts.target, placement), facts.dtype)


def _shortest_of_shards(cache: TargetCache) -> frozenset[int]:
    """Return the numbers of the samples that are held against the target in memory: they cost least."""
    shards = cache.index.parts >> 32
    order = np.lexsort((cache.index.lengths, shards))
    _, first = np.unique(shards[order], return_index=True)
    return frozenset(order[first].tolist())


def _probes(cache: EngineCache) -> list[Item]:
    """Return a few training samples, from the shortest on."""
    numbers = cache.numbers("train")
    if not len(numbers):
        raise SourceError("the cache has no sample in its training split; prepare more prompts")
    by_length = sorted(numbers.tolist(), key=lambda number: (int(cache.index.lengths[number]), number))
    chosen = sorted({by_length[len(by_length) * n // PROBES] for n in range(PROBES)})
    return [cache.item(number) for number in chosen]

"""Training without stored states: the target computes them while the draft learns.

    online   each sample's states are computed when the sample is read
    rolling  whole parts are computed ahead, in the forward passes of a capture and so with its very bytes, into a
             bounded local folder, from which they go again when they are longest unused

Both read a cache of tokens only (`cache.codec=none`), or any other: samples, their numbers and their order are the
cache's own, so a run is the same run whatever its source.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from torch import Tensor

from deepspec.artifacts import Artifact
from deepspec.chat.template import Sample
from deepspec.errors import SpecError
from deepspec.passes.samples import Item, batches, check_finite, padded, raw_bytes, to_record
from deepspec.placement import Placement
from deepspec.records.batch import Record
from deepspec.target.load import Target, load_placed
from deepspec.target_cache.cache import OnCorrupt, TargetCache, stored_parts
from deepspec.target_cache.codec import Bytes
from deepspec.target_cache.facts import CacheFacts
from deepspec.target_cache.fetch import BoundedFolder, MadeParts, PartReader, PartSource
from deepspec.target_cache.index import INDEX, Index
from deepspec.target_cache.part import Part, PartWriter
from deepspec.target_cache.sizes import HEADER

StatesSource = Literal["cache", "online", "rolling"]


def open_cache(
    artifact: Artifact,
    placement: Placement,
    source: StatesSource = "cache",
    on_corrupt: OnCorrupt = "stop",
) -> TargetCache:
    """Return a target cache whose states come from the store, or from the target itself.

    Args:
        artifact: the published cache.
        placement: scratch and its limit, device, and where the target lies.
        source: where states come from.
        on_corrupt: see `TargetCache`.

    Raises:
        SpecError: the cache holds tokens only, and source is "cache".
        TargetError: the target is not where the placement says, or is another one.
    """
    if source == "cache":
        return TargetCache(artifact, placement.scratch, limit=placement.parts_limit, on_corrupt=on_corrupt)
    facts = CacheFacts.model_validate(artifact.counts)
    target = load_placed(facts.target, placement, facts.dtype)
    stored = stored_parts(artifact, BoundedFolder(placement.scratch / "fetched" / "parts", placement.parts_limit))
    if source == "online":
        parts = OnlineParts(stored, target, facts)
        return TargetCache(artifact, placement.scratch, parts=parts, on_corrupt=on_corrupt)
    facts.check_rolls(artifact.prefix)
    if "batch_tokens" not in artifact.manifest.spec:
        raise SpecError("an imported cache has no forward passes to repeat; set train.source=cache or online")
    index = Index(artifact.path(INDEX))
    maker = _Maker(stored, target, facts, index, artifact.manifest.spec["batch_tokens"])
    folder = BoundedFolder(placement.scratch / "rolling", placement.parts_limit)
    return TargetCache(artifact, placement.scratch, parts=maker.parts(folder), on_corrupt=on_corrupt)


class OnlineParts:
    """Parts whose records are computed one by one.

    Args:
        stored: the parts that hold the tokens.
        target: what computes.
        facts: of the cache.
    """

    def __init__(self, stored: PartSource, target: Target, facts: CacheFacts) -> None:
        """Keep the arguments."""
        self._stored, self._target, self._facts = stored, target, facts
        self._turn = Lock()  # a capture records what passes through the target: one at a time

    def get(self, name: str) -> PartReader:
        """Return a part."""
        return _OnlinePart(self._stored.get(name), self._target, self._facts, self._turn)

    def prefetch(self, name: str) -> None:
        """Fetch the tokens."""
        self._stored.prefetch(name)


class _OnlinePart:
    def __init__(self, tokens: PartReader, target: Target, facts: CacheFacts, turn: Lock) -> None:
        self._tokens, self._target, self._facts, self._turn = tokens, target, facts, turn

    def record(self, row: Mapping[str, Any]) -> Record:
        """Return one sample, its states computed now."""
        item = _item(self._tokens.record(row))
        with self._turn:
            hidden, last = self._target.capture(padded([item]), self._facts.layers)
        record = to_record(item, hidden[0], last[0])
        check_finite(record, self._facts.layers)
        return record

    def tokens(self, row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return token ids and loss mask of one sample."""
        return self._tokens.tokens(row)


class _Maker:
    """Computes whole parts as the capture does."""

    def __init__(self, stored: PartSource, target: Target, facts: CacheFacts, index: Index, batch_tokens: int) -> None:
        self._stored, self._target, self._facts = stored, target, facts
        self._index, self._batch_tokens = index, batch_tokens
        self._columns: dict[str, Mapping[str, list[Any]]] = {}
        self._mine = secrets.token_hex(4)

    def parts(self, folder: BoundedFolder) -> MadeParts:
        """Return the parts, computed one at a time in a bounded folder."""

        def make(name: str) -> Path:
            numbers = self._index.numbers_of(name)
            items = [_item(self._stored.get(name).record(self._index.row(number))) for number in numbers]
            size = HEADER + sum(raw_bytes(item, len(self._facts.layers), self._facts.hidden_size) for item in items)
            own = f"{name.removesuffix('.safetensors')}-{self._mine}"
            return folder.file(own, size, lambda path: self._compute(name, items, path))

        return MadeParts(folder, make, self._open, workers=1)

    def _compute(self, name: str, items: Sequence[Item], path: Path) -> None:
        temporary = path.with_name(f"{path.name}.tmp")
        writer = PartWriter(temporary, 0, 0, "bf16")
        for batch in batches(items, self._batch_tokens):
            hidden, last = self._target.capture(padded(batch), self._facts.layers)
            for item, states, final in zip(batch, hidden, last, strict=True):
                record = to_record(item, states, final)
                check_finite(record, self._facts.layers)
                writer.add(record, item.split)
        writer.close()
        self._columns[name] = writer.columns
        temporary.replace(path)

    def _open(self, name: str, data: Bytes) -> PartReader:
        part = Part(data, name, self._facts.hidden_size, len(self._facts.layers))
        return _RollingPart(part, self._columns[name])


class _RollingPart:
    """A part with an index of its own: its samples stand in the order of the cache's, its blocks elsewhere."""

    def __init__(self, part: Part, columns: Mapping[str, list[Any]]) -> None:
        self._part, self._columns = part, columns
        self._places = {start: place for place, start in enumerate(columns["token_start"])}

    def record(self, row: Mapping[str, Any]) -> Record:
        """Return one sample."""
        return self._part.record(self._own(row))

    def tokens(self, row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return token ids and loss mask of one sample."""
        return self._part.tokens(self._own(row))

    def _own(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a sample's row in the part's own index."""
        place = self._places[int(row["token_start"])]
        return {name: values[place] for name, values in self._columns.items()}


def _item(record: Record) -> Item:
    sample = Sample(
        sample_id=record.sample_id, input_ids=record.input_ids.tolist(), loss_mask=record.loss_mask.tolist()
    )
    return Item(sample=sample, split="")

"""The target cache as training reads it: records by number, orders by epoch, local or from object storage.

The bytes are described in docs/formats/target_cache.md.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepspec.artifacts import Artifact
from deepspec.errors import CorruptArtifactError, SpecError
from deepspec.placement import PARTS_LIMIT
from deepspec.records.batch import Record
from deepspec.records.order import Numbers, epoch_order
from deepspec.target_cache.codec import CODECS, TOKENS_ONLY, Bytes
from deepspec.target_cache.facts import CacheFacts, SplitCounts
from deepspec.target_cache.fetch import (
    FETCHERS,
    BoundedFolder,
    LocalParts,
    MadeParts,
    PartReader,
    PartSource,
    fetched_parts,
    map_file,
)
from deepspec.target_cache.index import INDEX, Index, write_index
from deepspec.target_cache.part import COLUMNS, Part, PartWriter, concatenate, part_name
from deepspec.target_cache.sizes import HEADER

__all__ = [
    "CODECS",
    "COLUMNS",
    "HEADER",
    "INDEX",
    "TOKENS_ONLY",
    "BoundedFolder",
    "Bytes",
    "CacheFacts",
    "Index",
    "MadeParts",
    "OnCorrupt",
    "Part",
    "PartReader",
    "PartSource",
    "PartWriter",
    "SplitCounts",
    "TargetCache",
    "concatenate",
    "epoch_order",
    "map_file",
    "part_name",
    "stored_parts",
    "write_index",
]

OnCorrupt = Literal["stop", "quarantine"]
"""What to do about a sample whose bytes do not match its checksum."""


class TargetCache(Dataset[Record]):
    """A published target cache, opened for reading: a dataset for torch. Safe to use from several threads.

    Args:
        artifact: the published cache.
        scratch: local folder for parts fetched from a remote store.
        limit: bytes that fetched parts may take there; kept also after a crash. It should hold a window of parts.
        on_corrupt: whether a sample whose bytes do not match its checksum ends the reading, or is listed in
            `quarantined` and read as one that supervises nothing.
        parts: where parts come from, if not from the store.

    Raises:
        SpecError: the cache holds tokens only, and no other source of states is given.
    """

    def __init__(
        self,
        artifact: Artifact,
        scratch: Path,
        *,
        limit: int = PARTS_LIMIT,
        on_corrupt: OnCorrupt = "stop",
        parts: PartSource | None = None,
    ) -> None:
        """Read facts and index; no part is touched yet."""
        self.facts = CacheFacts.model_validate(artifact.counts)
        self.index = Index(artifact.path(INDEX))
        self.quarantined: dict[str, str] = {}
        """Samples whose bytes are damaged -> what is wrong with them."""
        if parts is None and self.facts.codec == TOKENS_ONLY:
            raise SpecError(
                "the cache holds tokens only; set train.source=online, rolling or engine, or another cache.codec"
            )
        self._on_corrupt = on_corrupt
        self._parts = parts or stored_parts(artifact, BoundedFolder(scratch / "fetched" / "parts", limit))
        self._after: dict[str, list[str]] = {}

    def __len__(self) -> int:
        """Return the number of samples, all splits together."""
        return len(self.index)

    def numbers(self, split: str) -> Numbers:
        """Return the numbers of the samples of a split: `train` or `validation`."""
        return self.index.numbers(split)

    def order(self, split: str, *, seed: int, epoch: int, window: int) -> Numbers:
        """Return the numbers of a split in the order of one epoch.

        Args:
            split: `train` or `validation`.
            seed: of the run.
            epoch: which pass.
            window: parts whose samples are mixed.
        """
        samples = self.numbers(split)
        order = epoch_order(samples, self.index.parts[samples], seed=seed, epoch=epoch, window=window)
        self.expect(order)
        return order

    def record(self, number: int) -> Record:
        """Return one sample; its bytes are checked when it is first read. Parts that come next are fetched meanwhile.

        Raises:
            CorruptArtifactError: they do not match, and `on_corrupt` is "stop"; names part and sample.
        """
        try:
            return self._record(number)
        except CorruptArtifactError as error:
            if self._on_corrupt == "stop":
                raise
            self.quarantined[self.index.sample_id(number)] = str(error)
            return self._unsupervised(number)

    def tokens(self, number: int) -> tuple[Tensor, Tensor]:
        """Return token ids and loss mask of one sample, `(T,)` each: its states are neither read nor checked."""
        return self._parts.get(self.index.part_of(number)).tokens(self.index.row(number))

    def __getitem__(self, number: int) -> Record:
        """Return one sample, as torch's DataLoader asks for it: this is a dataset for loops of other people, too."""
        return self.record(number)

    def stream(self, numbers: Sequence[int] | Numbers) -> Iterator[Record]:
        """Yield the samples of these numbers in order.

        To resume, give what is left of the order: nothing else is remembered.

        Raises:
            CorruptArtifactError: a sample is damaged and `on_corrupt` is "stop".
        """
        self.expect(numbers)
        for number in numbers:
            yield self.record(int(number))

    def expect(self, numbers: Sequence[int] | Numbers) -> None:
        """Note in which order samples will be read, so that parts can come before they are needed."""
        parts = self.index.parts[np.asarray(numbers, dtype=np.int64)]
        _, first = np.unique(parts, return_index=True)
        names = [self.index.part_of(int(numbers[place])) for place in sorted(first.tolist())]
        for place, name in enumerate(names):
            self._after[name] = names[place + 1 : place + 1 + FETCHERS]

    def ahead(self, split: str, numbers: Sequence[int]) -> None:
        """Hear which samples of a split are read next, in this order; what is stored is there, so nothing is done."""

    def note(self) -> str:
        """Return in a few words what a reader should know while it reads; empty: nothing."""
        return ""

    def told(self) -> list[str]:
        """Return in lines what has happened to what was read."""
        return [f"left out: {damage}" for damage in self.quarantined.values()]

    def _record(self, number: int) -> Record:
        name = self.index.part_of(number)
        part = self._parts.get(name)
        for coming in self._after.pop(name, ()):
            self._parts.prefetch(coming)
        return part.record(self.index.row(number))

    def _unsupervised(self, number: int) -> Record:
        """Return a sample of the same length in which nothing is known and nothing is learned."""
        length, width = int(self.index.lengths[number]), self.facts.hidden_size
        return Record(
            sample_id=self.index.sample_id(number),
            input_ids=torch.zeros(length, dtype=torch.int64),
            loss_mask=torch.zeros(length, dtype=torch.bool),
            hidden=torch.zeros(length, len(self.facts.layers) * width, dtype=torch.bfloat16),
            last_hidden=torch.zeros(0, width, dtype=torch.bfloat16),
        )


def stored_parts(artifact: Artifact, folder: BoundedFolder) -> PartSource:
    """Return the parts of a cache as its store has them."""
    facts = CacheFacts.model_validate(artifact.counts)

    def open_part(name: str, data: Bytes) -> PartReader:
        return Part(data, name, facts.hidden_size, len(facts.layers))

    if artifact.store.local:
        return LocalParts(artifact, open_part)
    return fetched_parts(artifact, open_part, folder)

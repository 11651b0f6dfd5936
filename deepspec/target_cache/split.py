"""One split of a target cache, as a stream of training samples reads it."""

from collections.abc import Sequence

from torch import Tensor

from deepspec.records.batch import Record
from deepspec.target_cache.cache import TargetCache


class CacheSplit:
    """One split of a target cache.

    Args:
        cache: the cache.
        split: `train` or `validation`.
        seed: of the run.
        window: parts among which samples are shuffled.
    """

    def __init__(self, cache: TargetCache, split: str, seed: int, window: int) -> None:
        """Find the split's samples."""
        self._cache = cache
        self._split = split
        self._seed = seed
        self._window = window
        self._count = len(cache.numbers(split))
        self._lengths = cache.index.lengths

    @property
    def state_bytes(self) -> int:
        """Return the bytes of the states of one token, in bf16."""
        facts = self._cache.facts
        return (len(facts.layers) + 1) * facts.hidden_size * 2

    def __len__(self) -> int:
        """Return how many samples there are."""
        return self._count

    def order(self, epoch: int) -> Sequence[int]:
        """Return the numbers of all samples in the order of one epoch."""
        found: list[int] = self._cache.order(self._split, seed=self._seed, epoch=epoch, window=self._window).tolist()
        return found

    def sample_id(self, number: int) -> str:
        """Return the id of a sample."""
        return self._cache.index.sample_id(number)

    def length(self, number: int) -> int:
        """Return the tokens of a sample."""
        return int(self._lengths[number])

    def ahead(self, numbers: Sequence[int]) -> None:
        """Say which samples are read next, in this order."""
        self._cache.ahead(self._split, numbers)

    def record(self, number: int) -> Record:
        """Read a sample."""
        return self._cache.record(number)

    def tokens(self, number: int) -> tuple[Tensor, Tensor]:
        """Read token ids and loss mask of a sample, `(T,)` each, and nothing else."""
        return self._cache.tokens(number)

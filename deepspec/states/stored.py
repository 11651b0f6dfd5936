"""States in a store: of an engine whose folder is not seen here, put there by a carrier that stands beside it."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from deepspec.depots.depot import Depot, opened_depot
from deepspec.engines.failures import AskError
from deepspec.errors import EngineError, NotPublishedError, RefusedError, StoreError
from deepspec.states.file import check_told, read_stored
from deepspec.states.wanted import Wanted

FOLDER = "states"
"""Below the root of the store."""
_URI = re.compile(r"((?:s3|mooncake(?:\+rdma)?)://.+)/([^/]+)")


@dataclass(frozen=True, slots=True)
class StatesInStore:
    """Where the states of one request lie: an object, whole or not there. Arguments and errors as of `file.read`."""

    root: str
    """Of the store, as a URL."""
    key: str

    @classmethod
    def at(cls, uri: str) -> Self | None:
        """Return the place that a URI names; None: it is none of a store."""
        found = _URI.fullmatch(uri)
        return cls(*found.groups()) if found else None

    @property
    def folder(self) -> None:
        """Return None: nothing has to be held."""

    async def whole(self, label: str) -> None:
        """Return at once."""

    def states(self, ids: Sequence[int], wanted: Wanted, label: str) -> Tensor:
        """Return the states of one request, `(T, layers and the last, D)`, checked but for being finite."""
        with self._asked(label) as store:
            data = store.read_bytes(self.key)
        return read_stored(data, store.uri(self.key), ids, wanted, label)

    def check(self, ids: Sequence[int], wanted: Wanted, label: str) -> int:
        """Return the bytes of the object; of which tokens it is shows once it is here."""
        del ids, wanted
        with self._asked(label) as store:
            return store.size(self.key)

    def bring(self, to: Path, ids: Sequence[int], wanted: Wanted, label: str) -> None:
        """Fetch the object to a path."""
        with self._asked(label) as store:
            store.get_file(self.key, to)
        check_told(to, ids, wanted, label)

    def delete(self, label: str) -> None:
        """Delete the object; what stays is deleted by the carrier."""
        del label
        with suppress(StoreError):
            opened_depot(self.root).delete(self.key)

    @contextmanager
    def _asked(self, label: str) -> Iterator[Depot]:
        store = opened_depot(self.root)
        try:
            yield store
        except NotPublishedError:
            raise EngineError(
                f"engine {label} says that its states lie at {store.uri(self.key)}, and there is nothing: give carrier "
                "and run the same store (AWS_ENDPOINT_URL, credentials), and read within the hour"
            ) from None
        except RefusedError as error:
            raise EngineError(
                f"engine {label} put its states into a store that this run may not read: {error}"
            ) from error
        except StoreError as error:
            raise AskError(f"{label}: {error}", "engine") from error

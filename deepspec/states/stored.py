"""States in a store: of an engine whose folder is not seen here, put there by a carrier that stands beside it."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from deepspec.engines.failures import AskError
from deepspec.errors import EngineError, NotPublishedError, StoreError
from deepspec.states.file import read_stored
from deepspec.states.wanted import Wanted
from deepspec.store import Store

FOLDER = "states"
"""Below the root of the store."""
_URI = re.compile(r"(s3://.+)/([^/]+)")


@dataclass(frozen=True, slots=True)
class StatesInStore:
    """Where the states of one request lie."""

    root: str
    """Of the store, as a URL."""
    key: str

    @classmethod
    def at(cls, uri: str) -> Self | None:
        """Return the place that a URI names; None: it is none of a store."""
        found = _URI.fullmatch(uri)
        return cls(*found.groups()) if found else None

    def states(self, ids: Sequence[int], wanted: Wanted, label: str) -> Tensor:
        """Return the states of one request, as `deepspec.states.file.read` does, and delete them there.

        Args:
            ids: the tokens that were asked for.
            wanted: what the states must be of.
            label: of the engine, for messages.

        Raises:
            AskError: the store gives nothing now, or the bytes are damaged or of other tokens.
            EngineError: the store that is seen here has them not, or they are not what is wanted.
        """
        store = Store(self.root)
        try:
            data = store.read_bytes(self.key)
        except NotPublishedError:
            raise EngineError(
                f"engine {label} says that its states lie at {store.uri(self.key)}, and there is nothing: give carrier "
                "and run the same store (AWS_ENDPOINT_URL, credentials), and read within the hour"
            ) from None
        except StoreError as error:
            raise AskError(f"{label}: {error}", "engine") from None
        finally:
            with suppress(StoreError):  # what stays is deleted by the carrier
                store.delete(self.key)
        return read_stored(data, store.uri(self.key), ids, wanted, label)

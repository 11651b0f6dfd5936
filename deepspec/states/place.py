"""Where the states of one request lie: in a folder that engine and run see, or in a store."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.states.file import check_told, delete, read_states, written
from deepspec.states.stored import StatesInStore
from deepspec.states.wanted import RESTART, Wanted

PATH, FAILED, REFUSED, FULL = (
    "hidden_states_path", "hidden_states_error", "hidden_states_refused", "hidden_states_full",
)  # fmt: skip
"""What a reply names in `kv_transfer_params`: the place, or why there is none; that there will be none (true); that
there is no room for now (true)."""


class StatesPlace(Protocol):
    """Where the states of one request lie. Arguments are those of `deepspec.states.file.read`; so are errors."""

    @property
    def folder(self) -> Path | None:
        """Return the folder that a run holds while it reads there; None: none."""

    async def whole(self, label: str) -> None:
        """Wait until all of them are there."""

    def states(self, ids: Sequence[int], wanted: Wanted, label: str) -> Tensor:
        """Return them, checked but for being finite."""

    def check(self, ids: Sequence[int], wanted: Wanted, label: str) -> int:
        """Return the bytes of their file; it has to be of these tokens, where that is told without fetching it."""

    def bring(self, to: Path, ids: Sequence[int], wanted: Wanted, label: str) -> None:
        """Have the file at another path; it has to be of these tokens, its states are not read."""

    def delete(self, label: str) -> None:
        """Delete them."""


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """A file in a folder that engine and run see."""

    path: Path

    @property
    def folder(self) -> Path:
        """Return the folder."""
        return self.path.parent

    async def whole(self, label: str) -> None:
        """Wait until the engine has written the file."""
        await written(self.path, label)

    def states(self, ids: Sequence[int], wanted: Wanted, label: str) -> Tensor:
        """Return the states."""
        return read_states(self.path, ids, wanted, label)

    def check(self, ids: Sequence[int], wanted: Wanted, label: str) -> int:
        """Return the bytes of the file, which has to be of these tokens."""
        check_told(self.path, ids, wanted, label)
        return self.path.stat().st_size

    def bring(self, to: Path, ids: Sequence[int], wanted: Wanted, label: str) -> None:
        """Move the file."""
        check_told(self.path, ids, wanted, label)
        shutil.move(self.path, to)

    def delete(self, label: str) -> None:
        """Delete the file and what lies beside it."""
        delete(self.path, label)


def place_in(reply: Mapping[str, Any], name: str, label: str) -> StatesPlace:
    """Return where a reply says that states lie; never a place that is not of this very request.

    Args:
        reply: the engine's, or a carrier's.
        name: of the request.
        label: of the engine, for messages.

    Raises:
        AskError: it says that there are none, and why.
        EngineError: it says no such place, or that there will be none until somebody mends it.
    """
    told = reply.get("kv_transfer_params")
    told = told if isinstance(told, Mapping) else {}
    where, failed = told.get(PATH), told.get(FAILED)
    if isinstance(failed, str) and told.get(REFUSED) is True:
        raise EngineError(f"the carrier {label} has no way to store states, and asking again is of no use: {failed}")
    if isinstance(failed, str):
        raise AskError(f"{label}: {failed}", "busy" if told.get(FULL) is True else "engine")
    if not isinstance(where, str):
        raise EngineError(f"engine {label} answers and gives no states; {RESTART}")
    stored = StatesInStore.at(where)
    is_absolute = stored is not None or Path(where).is_absolute()
    if name not in where.rpartition("/")[2] or not where.endswith(".safetensors") or not is_absolute:
        raise EngineError(
            f"engine {label} names {where[:200]!r} as the file of request {name}; wanted an absolute path with "
            f"the request's name in it; {RESTART}"
        )
    return stored or FolderPlace(Path(where))

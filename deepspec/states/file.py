"""One file of states, as an engine wrote it: waited for, read, checked, and deleted.

The engine holds `PATH.lock` until the file is whole, and frees it when it dies, too: a free lock without a file is a
failure. `PATH.error` beside it says why.
"""

import asyncio
import fcntl
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.formats.tensor_heads import DTYPES
from deepspec.states.wanted import Wanted

LOCK_SECONDS = 300.0
"""How long an engine may write one file."""
FIRST_LOOK, LONGEST_LOOK = 0.002, 0.05
"""Seconds between two looks at a lock: doubled each time."""
_DTYPES: Mapping[str, torch.dtype] = {stored: getattr(torch, name) for name, stored in DTYPES.items()}
"""Dtype as safetensors names it."""
_FULL = ("No space left", "StorageFull", "Disk quota")


async def written(path: Path, label: str) -> None:
    """Wait until an engine has written a file.

    Raises:
        AskError: it has not, and will not.
        EngineError: this process cannot see the file, or may not.
    """
    waited, pause = 0.0, FIRST_LOOK
    while _is_locked(path, label):
        if waited >= LOCK_SECONDS:
            told = f"its writer has held a lock for {LOCK_SECONDS:g} s, and hangs; see its log"
            raise AskError(f"{label}: {told} ({path})", "late")
        await asyncio.sleep(pause)
        waited, pause = waited + pause, min(LONGEST_LOOK, 2 * pause)
    if not path.exists():
        raise _absent(path, label)


def read_states(path: Path, ids: Sequence[int], wanted: Wanted, label: str) -> Tensor:
    """Return the states of one request, `(T, layers and the last, D)`, checked but for being finite.

    Args:
        path: the file.
        ids: the tokens that were asked for.
        wanted: what the states must be of.
        label: of the engine, for messages.

    Raises:
        AskError: the bytes are damaged, or of other tokens.
        EngineError: they are of another model or precision, other layers, or of another user's.
    """
    states, tokens = _read(path, wanted, label)
    _check(tuple(states.shape), states.dtype, tokens, ids, wanted, label)
    return states


def read_stored(data: bytes, where: str, ids: Sequence[int], wanted: Wanted, label: str) -> Tensor:
    """Return the states of one request from the bytes of its file; errors are those of `read`.

    Args:
        data: the whole file.
        where: it lay, for messages.
        ids: the tokens that were asked for.
        wanted: what the states must be of.
        label: of the engine, for messages.
    """
    try:
        file = _FileInMemory(data)
        states, tokens = _told_rightly(file, where, wanted, label)
    except (SafetensorError, ValueError, AttributeError) as error:
        raise AskError(f"{label}: {where} cannot be read: {error}", "engine") from None
    _check(tuple(states.shape), states.dtype, tokens, ids, wanted, label)
    return states


def read_beginning(path: Path, ids: Sequence[int], wanted: Wanted, label: str) -> Tensor:
    """Return the states of the tokens that a file begins with; arguments and errors are those of `read`."""
    states, tokens = (each[: len(ids)] for each in _read(path, wanted, label))
    _check(tuple(states.shape), states.dtype, tokens, ids, wanted, label)
    return states


def check_told(path: Path, ids: Sequence[int], wanted: Wanted, label: str) -> None:
    """Check what a file says of itself, and its tokens; its states are not read. Arguments and errors as of `read`."""
    with _opened(path, label) as file:
        wanted.check(file.metadata() or {}, label)
        states = file.get_slice("hidden_states")
        shape, dtype = tuple(states.get_shape()), _DTYPES.get(states.get_dtype())
        _check(shape, dtype, file.get_tensor("token_ids"), ids, wanted, label)


def states_checksum(states: Tensor, tokens: Tensor) -> str:
    """Return the CRC-32 of the states' bytes, then of the token ids'."""
    found = zlib.crc32(_bytes(states))
    return str(zlib.crc32(_bytes(tokens), found))


def delete(path: Path, label: str) -> None:
    """Delete a file and what lies beside it.

    Raises:
        EngineError: this process may not.
    """
    for suffix in ("", ".lock", ".error", ".tmp"):
        try:
            path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
        except PermissionError as error:
            raise _foreign(path, label) from error


@contextmanager
def _opened(path: Path, label: str) -> Iterator[Any]:
    try:
        path.open("rb").close()  # of a file that may not be opened, safetensors says that there is none
        with safe_open(path, "pt") as file:
            yield file
    except PermissionError as error:
        raise _foreign(path, label) from error
    except (SafetensorError, OSError) as error:
        raise AskError(f"{label}: {path} cannot be read: {error}", "engine") from None


def _read(path: Path, wanted: Wanted, label: str) -> tuple[Tensor, Tensor]:
    with _opened(path, label) as file:
        return _told_rightly(file, str(path), wanted, label)


def _told_rightly(file: Any, where: str, wanted: Wanted, label: str) -> tuple[Tensor, Tensor]:
    """Return states and token ids, once the file says that they are of what is wanted, and its checksum holds."""
    told = file.metadata() or {}
    wanted.check(told, label)
    states, tokens = file.get_tensor("hidden_states"), file.get_tensor("token_ids")
    if states_checksum(states, tokens) != told.get("crc32"):
        raise AskError(f"{label}: {where} does not match its own checksum", "engine")
    return states, tokens


class _FileInMemory:
    """A file in memory, with the methods of an open one that are used here."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[:8], "little")
        self._told: Mapping[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        self._tensors: dict[str, Tensor] = load(data)

    def metadata(self) -> Mapping[str, str]:
        return self._told

    def get_tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise SafetensorError(f"there is no {name}")
        return self._tensors[name]


def _check(
    found: tuple[int, ...], dtype: torch.dtype | None, tokens: Tensor, ids: Sequence[int], wanted: Wanted, label: str
) -> None:
    shape = (len(ids), len(wanted.ids), wanted.hidden_size)
    if tokens.tolist() != list(ids):
        raise AskError(f"{label}: the states are of other token ids than were asked for", "odd")
    if found != shape:
        raise AskError(f"{label}: the states are {found}, wanted {shape}", "odd")
    if str(dtype) != f"torch.{wanted.dtype}":
        raise AskError(f"{label}: the states are {dtype}, wanted {wanted.dtype}", "odd")


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _is_locked(path: Path, label: str) -> bool:
    try:
        with path.with_name(f"{path.name}.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise _foreign(path, label) from error
    return False


def _absent(path: Path, label: str) -> AskError | EngineError:
    """Return why there is no file: its writer says it, or died, or writes where this process does not look."""
    with suppress(OSError):
        told = path.with_name(f"{path.name}.error").read_text()
        if any(word in told for word in _FULL):
            return AskError(f"{path.parent} is full; free it, or lower DEEPSPEC_STAGING_GB ({told})", "busy")
        return AskError(f"{label} could not write {path}: {told}", "engine")
    if path.with_name(f"{path.name}.lock").exists():
        return AskError(f"{label}: its writer died before the file was whole; see its log ({path})", "engine")
    return EngineError(
        f"engine {label} says that it wrote {path}, which is not here: it runs on another machine or in a container of "
        "its own; let both see one folder, and start it with engine-args --staging FOLDER"
    )


def _foreign(path: Path, label: str) -> EngineError:
    return EngineError(
        f"{label} wrote {path} as a user whose files this one may not read and delete; run both as one user or group, "
        "or give a folder to both with engine-args --staging FOLDER"
    )

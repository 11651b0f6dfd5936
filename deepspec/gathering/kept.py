"""States of samples kept in a local folder: for later epochs, and for a run that goes on after it was killed.

A sample is a file, whole or not there: the folder is the ledger. What came first stays: an epoch reads each sample
once, so that of those kept last nothing would be left when their turn comes.
"""

import os
import zlib
from contextlib import suppress
from pathlib import Path
from threading import Lock

import psutil
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepspec.disk import writing
from deepspec.records.batch import Record

_END = ".safetensors"
UNFINISHED = ".unfinished"
"""End of the name of a file that process PID, before it, is writing."""
_HEADER = 1024
"""Bytes of a file beside its states, at most."""


class Kept:
    """States of one cache's samples by one engine.

    Args:
        folder: made when needed; several processes may share it.
        limit: bytes that files may take there.
        sharers: processes that share the room.
    """

    def __init__(self, folder: Path, limit: int, sharers: int = 1) -> None:
        """Delete what dead processes left unfinished, and what a lowered limit has no room for."""
        self._folder, self._turn = folder, Lock()
        self.read = self.damaged = 0
        """Samples that were read from here, and those whose file was damaged."""
        used = swept(folder, limit)
        self._room = max(0, limit - used) // sharers

    def has(self, sample_id: str) -> bool:
        """Return whether there is a file of a sample."""
        return self._path(sample_id).exists()

    def put(self, record: Record) -> bool:
        """Keep a sample's states if there is room; return whether they are kept."""
        path, size = self._path(record.sample_id), _HEADER + record.hidden.nbytes + record.last_hidden.nbytes
        with self._turn:
            if self._room < size or path.exists():
                return path.exists()
            self._room -= size
        unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
        self._folder.mkdir(parents=True, exist_ok=True)
        with writing(unfinished):
            tensors = {"hidden": record.hidden.contiguous(), "last_hidden": record.last_hidden.contiguous()}
            save_file(tensors, unfinished, metadata={"crc32": _checksum(record)})
            unfinished.replace(path)
        return True

    def get(self, sample_id: str, input_ids: Tensor, loss_mask: Tensor) -> Record | None:
        """Return a sample; None where it is not kept, or its file is damaged or of other tokens: that is deleted."""
        path = self._path(sample_id)
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                hidden, last = file.get_tensor("hidden"), file.get_tensor("last_hidden")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            self._drop(path)
            return None
        record = Record(sample_id=sample_id, input_ids=input_ids, loss_mask=loss_mask, hidden=hidden, last_hidden=last)
        if told.get("crc32") != _checksum(record):
            self._drop(path)
            return None
        self.read += 1
        return record

    def _drop(self, path: Path) -> None:
        self.damaged += 1
        path.unlink(missing_ok=True)

    def _path(self, sample_id: str) -> Path:
        return self._folder / f"{xxhash.xxh3_128_hexdigest(sample_id.encode())}{_END}"


def swept(folder: Path, limit: int | None) -> int:
    """Return the bytes in a folder, once what is unfinished or, where there is a limit, too much is deleted."""
    used = 0
    for path in sorted(folder.glob("*")):
        with suppress(FileNotFoundError):  # another process sweeps, too
            size = path.stat().st_size
            if _is_unfinished(path) or (limit is not None and used + size > limit):
                path.unlink()
            else:
                used += size
    return used


def _is_unfinished(path: Path) -> bool:
    """Return whether a file is one that a dead process was writing."""
    if path.suffix != UNFINISHED:
        return False
    return not psutil.pid_exists(int(path.name.split(".")[-2]))


def _checksum(record: Record) -> str:
    found = 0
    for tensor in (record.hidden, record.last_hidden, record.input_ids):
        found = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, found)
    return str(found)

"""Saved states of a run in flight: data first, a small mark last, and the newest valid one adopted.

    <prefix>/<attempt>/step-00000120.safetensors    weights and optimizer state
    <prefix>/<attempt>/step-00000120.jsonl          metric rows so far
    <prefix>/step-00000120.json                     the commit mark: progress, and size and checksum of both
    <prefix>/latest.json                            {"step": 120}

See docs/formats/checkpoints.md.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepspec.artifacts import new_attempt
from deepspec.disk import FileEntry, checksum, verify_file, writing
from deepspec.errors import CorruptArtifactError, NotPublishedError, StoreError
from deepspec.store import Store

VERSION = 1
LATEST = "latest.json"
WRITE_SPEED = 200e6
"""Bytes per second at which a state is written, read again for its checksum and stored, at worst: a network volume."""


class Mark(BaseModel):
    """The commit mark of one saved state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    step: int
    """Optimizer steps taken."""
    files: dict[str, FileEntry]
    """`safetensors` and `jsonl`."""
    progress: dict[str, Any]
    """What the loop knows beside tensors and rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """A saved state."""

    step: int
    """Optimizer steps taken."""
    tensors: dict[str, Tensor]
    rows: list[dict[str, Any]]
    """Metric rows so far."""
    progress: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Saves:
    """Where the states of one run are saved."""

    last: "Checkpoints"
    """Those to go on from."""
    best: "Checkpoints | None" = None
    """That of the lowest held-out loss, where the spec keeps it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Which states are kept."""

    last: int
    """The newest ones: the one before the last is used where the last is damaged."""
    every: int | None = None
    """Beside them, those of every so many steps taken; None: no others."""

    def kept(self, steps: Iterable[int]) -> set[int]:
        """Return the steps whose states stay."""
        newest = sorted(steps, reverse=True)
        every = self.every or math.inf
        return {step for n, step in enumerate(newest) if n < self.last or (step > 0 and step % every == 0)}


def seconds_to_save(state_bytes: int, saves: Saves) -> float:
    """Return how long a run saves once it is asked to stop: each place may be writing, and then a last state comes."""
    return (2 if saves.best is None else 3) * state_bytes / WRITE_SPEED


class Checkpoints:
    """The saved states of one run under a prefix of a store.

    Args:
        store: local scratch, or the remote store so that another machine can go on.
        prefix: of the keys; the same for every attempt at the same work.
        scratch: local folder for files before they are stored.
        keep: which states are kept.
        log: told of everything that does not go as planned.
    """

    def __init__(self, store: Store, prefix: str, scratch: Path, keep: Retention, log: Callable[[str], None]) -> None:
        """Name the place; nothing is read yet."""
        self._store = store
        self._prefix = prefix
        self._scratch = scratch
        self._keep = keep
        self._log = log
        self._attempt = new_attempt()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.failed = 0
        """Saves that failed; the state before them is still there."""

    def save(self, state: SavedState) -> None:
        """Save a state beside the training, in a thread: its tensors must be copies.

        A save that fails is logged and counted; training goes on with the one before.
        """
        self.finish()
        self._pending = self._pool.submit(self._write, replace(state, rows=list(state.rows)))

    def finish(self) -> bool:
        """Return when the save in flight, if any, is done: False where it failed."""
        if self._pending is None:
            return True
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except (StoreError, OSError) as error:
            self.failed += 1
            self._log(f"checkpoint not saved: {error}; training goes on, the one before is kept")
            return False
        return True

    def newest(self) -> SavedState | None:
        """Return the newest state that is whole, or None; what is damaged is passed over, and said."""
        shutil.rmtree(self._scratch, ignore_errors=True)  # what a killed attempt left half-written
        for step in sorted(self._steps(), reverse=True):
            try:
                return self._read(step)
            except (CorruptArtifactError, NotPublishedError) as error:
                self._log(f"checkpoint of step {step} cannot be used: {error}; trying the one before")
                self._store.delete(self._mark_key(step))
        return None

    def drop_after(self, step: int) -> None:
        """Forget the states of later steps: what a run that goes on from here makes of those may be another."""
        for later in self._steps():
            if later > step:
                self._store.delete(self._mark_key(later))

    def close(self) -> None:
        """Wait for the save in flight and end the thread."""
        self.finish()
        self._pool.shutdown()

    def _write(self, state: SavedState) -> None:
        name = _name(state.step)
        rows = "".join(f"{json.dumps(row)}\n" for row in state.rows)
        files = {
            "safetensors": self._put(name, "safetensors", lambda path: write_tensors(state.tensors, path)),
            "jsonl": self._put(name, "jsonl", lambda path: path.write_text(rows)),
        }
        mark = Mark(step=state.step, files=files, progress=state.progress)
        self._store.write_bytes(self._mark_key(state.step), mark.model_dump_json().encode())
        self._store.write_bytes(f"{self._prefix}/{LATEST}", json.dumps({"step": state.step}).encode())
        self._retire()

    def _put(self, name: str, kind: str, write: Callable[[Path], Any]) -> FileEntry:
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / f"{name}.{kind}"
        try:
            write(path)
            entry = FileEntry(key=f"{self._attempt}/{path.name}", size=path.stat().st_size, checksum=checksum(path))
            self._store.put_file(path, f"{self._prefix}/{entry.key}")
        finally:
            path.unlink(missing_ok=True)
        return entry

    def _read(self, step: int) -> SavedState:
        key = self._mark_key(step)
        try:
            mark = Mark.model_validate_json(self._store.read_bytes(key))
        except ValidationError as error:
            raise CorruptArtifactError(f"{self._store.uri(key)} is not a mark: {error}") from error
        rows = [json.loads(line) for line in self._local(mark.files["jsonl"]).read_text().splitlines()]
        tensors = load_file(self._local(mark.files["safetensors"]))
        return SavedState(step=mark.step, tensors=tensors, rows=rows, progress=mark.progress)

    def _local(self, entry: FileEntry) -> Path:
        """Return a verified local file."""
        key = f"{self._prefix}/{entry.key}"
        local = self._store.local_path(key)
        if local is None:
            local = self._scratch / "fetched" / entry.key
            self._store.get_file(key, local)
        verify_file(local, entry, self._store.uri(key))
        return local

    def _retire(self) -> None:
        """Delete the states that are not kept, marks first, and data that no mark names."""
        steps = self._steps()
        kept = self._keep.kept(steps)
        for step in set(steps) - kept:
            self._store.delete(self._mark_key(step))
        names = {_name(step) for step in kept}
        for key in self._store.list(self._prefix):
            if key.endswith((".safetensors", ".jsonl")) and Path(key).stem not in names:
                self._store.delete(key)

    def _steps(self) -> list[int]:
        """Return the steps of all marks."""
        names = (Path(key).name for key in self._store.list(self._prefix))
        return [int(name[5:-5]) for name in names if name.startswith("step-") and name.endswith(".json")]

    def _mark_key(self, step: int) -> str:
        return f"{self._prefix}/{_name(step)}.json"


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        StoreError: it cannot be written: the disk is full, say.
    """
    with writing(path):
        save_file(tensors, path)


def _name(step: int) -> str:
    return f"step-{step:08d}"

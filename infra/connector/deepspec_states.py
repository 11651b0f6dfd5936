"""A connector that vLLM loads: it writes the hidden states of each request to a file, with what they are of.

One file, for a CPU and for GPUs; it needs nothing but vLLM. `deepspec engine-args` prints the command line that names
it. vLLM's own example connector pins memory, which ends an engine on a CPU; says nothing of dtype, layers or weights;
and leaves files that only its own user reads. See docs/states.md for the protocol.
"""

import hashlib
import os
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import vllm
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as stock
from vllm.v1.request import RequestStatus

FORMAT = "deepspec.states"
VERSION = "1"
FILE_MODE, FOLDER_MODE = 0o660, 0o770
"""Readable and deletable by the group: the engine may run as another user. A folder that is there keeps its mode."""
BLOCKS, BLOCK_BYTES = 64, 4096
"""Of each weight file so many pieces enter the digest, beside its header and its size."""


def digest_of(folder: Path) -> str:
    """Return a quick digest of a model's folder: its config, and of each weight file name, size, header and samples.

    `deepspec.states.digest` has the same function, for this file must not import it; a test holds them together.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(file.read(length))
            for number in range(BLOCKS):
                file.seek(8 + length + (size - 8 - length) * number // BLOCKS)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()[:32]


class StatesConnector(stock.ExampleHiddenStatesConnector):  # type: ignore[misc]  # vLLM is in another environment
    """Writes `hidden_states` `(T, layers, D)` and `token_ids` `(T,)` of each request to one safetensors file."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        """Look at what the states are of."""
        super().__init__(vllm_config, role, kv_cache_config)
        model, speculative = vllm_config.model_config, vllm_config.speculative_config
        ids = speculative.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids
        self._told = {
            "format": FORMAT,
            "version": VERSION,
            "engine": "vllm",
            "engine_version": vllm.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": str(model.quantization or ""),
            "layer_ids": ",".join(map(str, ids)),
            "model": digest_of(_folder(model.model, model.revision)),
        }
        _make(Path(self._storage_path))

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Write nothing of a request that was given up: where it had not come yet, its blocks hold another's states."""
        if request.status == RequestStatus.FINISHED_ABORTED:
            self._request_filenames.pop(request.request_id, None)
            return False, None
        written: tuple[bool, dict[str, Any] | None] = super().request_finished(request, block_ids)
        return written

    def _submit_async_write(self, pending: Any) -> None:
        """Write a finished request: on a GPU as vLLM does, elsewhere without pinned memory, stream and event."""
        if not self._is_tp_rank_zero or self._kv_cache.device.type == "cuda":
            super()._submit_async_write(pending)
            return
        states = stock.extract_from_kv_cache(self._kv_cache, self._slots(pending), pending.token_ids.shape[0])
        tensors = {"hidden_states": states.contiguous(), "token_ids": pending.token_ids.clone()}
        done, lock = _Done(), self._lock_fds.pop(pending.req_id, None)
        self._req_copy_events[pending.req_id] = done
        future = self._executor.submit(self._write_tensors, tensors, done, pending.filename, lock)
        self._req_futures[pending.req_id] = future
        future.add_done_callback(partial(self._on_write_done, pending.req_id))

    def _slots(self, pending: Any) -> torch.Tensor:
        """Return where the tokens of a request lie in the cache."""
        blocks = torch.tensor(pending.block_ids, dtype=torch.long)[:, None]
        slots: torch.Tensor = blocks * self._block_size + torch.arange(self._block_size)
        return slots.flatten()

    def _write_tensors(self, tensors: dict[str, Any], event: Any, filename: str, lock_fd: int | None) -> None:
        """Write a file under another name, rename it, free the lock; say beside it why there is none."""
        path = Path(filename)
        unfinished = path.with_name(f"{path.name}.tmp")
        try:
            event.synchronize()
            save_file(tensors, unfinished, metadata={**self._told, "crc32": str(checksum(tensors))})
            unfinished.chmod(FILE_MODE)
            unfinished.replace(path)
        except BaseException as error:
            with suppress(OSError):
                unfinished.unlink()
            with suppress(OSError):
                path.with_name(f"{path.name}.error").write_text(f"{type(error).__name__}: {error}")
            raise
        finally:
            if lock_fd is not None:
                os.close(lock_fd)


def checksum(tensors: dict[str, Any]) -> int:
    """Return the CRC-32 of the states' bytes, then of the token ids' (int64)."""
    found = 0
    for name in ("hidden_states", "token_ids"):
        found = zlib.crc32(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data, found)
    return found


class _Done:
    """Stands for the event of a copy where nothing is copied behind the engine's back."""

    def synchronize(self) -> None:
        """Wait for nothing."""

    def query(self) -> bool:
        """Return that it is over."""
        return True


def _make(folder: Path) -> None:
    """Have a folder; the scheduler and every rank of the engine come here at the same time."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        folder.chmod(FOLDER_MODE)


def _folder(model: str, revision: str | None) -> Path:
    """Return where the engine's model lies: the folder that it was given, or the hub's copy of it here."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))

"""The files of a draft checkpoint: in a folder or on the hub, its weights in one file or in shards."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepspec.artifacts import check_name
from deepspec.disk import writing
from deepspec.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
"""Names the shards, where the weights are in several files."""


def checkpoint_folder(name: str, *, weights: bool = True) -> Path:
    """Return the folder that a path or a hub id `ORG/MODEL` names, fetched where it is not here yet.

    Args:
        name: folder or hub id.
        weights: whether the weights are wanted, or config.json alone.

    Raises:
        CheckpointError: there is no such folder, or the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise CheckpointError(f"{name}: no such folder; give a folder, or a hub id ORG/MODEL")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", *(["*.safetensors"] if weights else [])]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{name} is no folder, not in the local hub cache, and the hub cannot be reached; connect, or give a folder"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{name} is neither a folder nor a hub id ORG/MODEL; check the name") from error
    except HfHubHTTPError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name} on the Hugging Face hub: {first}; check the name") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json.

    Raises:
        CheckpointError: it is missing, or no JSON object.
    """
    return _read_json(folder / CONFIG)


def weight_files(folder: Path) -> list[Path]:
    """Return the file, or the shards, that hold a checkpoint's weights.

    Raises:
        CheckpointError: there are none, or the index of the shards makes no sense.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / SHARDS).exists():
        raise CheckpointError(f"{folder / WEIGHTS} does not exist, nor does {SHARDS}; is the folder a checkpoint?")
    placed = _read_json(folder / SHARDS).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{folder / SHARDS} has no weight_map; fetch it again")
    names = sorted({str(name) for name in placed.values()})
    for name in names:
        check_name(name, str(folder / SHARDS))
    return [folder / name for name in names]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
    return found


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, read from the files' headers; errors as in `read_tensors`."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def write_weights(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the tensors of a checkpoint into one file.

    Raises:
        StoreError: it cannot be written: the disk is full, say.
    """
    with writing(folder / WEIGHTS):
        save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; fetch the checkpoint again") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; is its folder a checkpoint?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, wanted a JSON object")
    return value

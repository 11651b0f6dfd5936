"""The files of a draft checkpoint: in a folder or on the hub, its weights in one file or in shards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open

from deepspec.disk import writing
from deepspec.errors import CheckpointError
from deepspec.formats.tensor_heads import SHARDS, WEIGHTS, read_heads, read_object, read_placed

if TYPE_CHECKING:  # a plan reads configs and headers, and does without torch
    from torch import Tensor

CONFIG = "config.json"
PATHS = ("/", ".", "~")
"""How the name of a folder may begin, and none of something published or on the hub does."""

__all__ = [
    "CONFIG",
    "SHARDS",
    "WEIGHTS",
    "checkpoint_folder",
    "read_config",
    "read_shapes",
    "read_tensors",
    "weight_files",
    "write_weights",
]


def is_checkpoint(name: str) -> bool:
    """Return whether a name is that of a folder or a hub id, rather than of something published."""
    if name.startswith(PATHS) or Path(name).expanduser().is_dir():
        return True
    return name.count("/") == 1 and not name.startswith("draft/")


def checkpoint_folder(name: str, *, weights: bool = True) -> Path:
    """Return the folder that a path or a hub id `ORG/MODEL` names, fetched where it is not here yet.

    Args:
        name: folder or hub id.
        weights: whether the weights are wanted, or config.json alone.

    Raises:
        CheckpointError: there is no such folder, or the hub does not give it.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if name and folder.is_file():
        raise CheckpointError(f"{name} is a file; give its folder")
    if name.startswith(PATHS) or name.count("/") != 1:
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
    return read_object(folder / CONFIG, CheckpointError)


def weight_files(folder: Path) -> list[Path]:
    """Return the file, or the shards, that hold a checkpoint's weights.

    Raises:
        CheckpointError: there are none, or the index of the shards makes no sense.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    return [folder / name for name in sorted(set(read_placed(folder, CheckpointError).values()))]


def read_tensors(folder: Path) -> "dict[str, Tensor]":
    """Return all tensors of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    read_heads(folder, CheckpointError)  # it says best what is wrong with the files
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
    return found


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, read from the files' headers; errors as in `read_tensors`."""
    return {name: head.shape for name, head in read_heads(folder, CheckpointError).items()}


def write_weights(tensors: "Mapping[str, Tensor]", folder: Path) -> None:
    """Write the tensors of a checkpoint into one file.

    Raises:
        StoreError: it cannot be written: the disk is full, say.
    """
    from safetensors.torch import save_file

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

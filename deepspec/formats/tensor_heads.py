"""What safetensors files say before a tensor of them is read: names, dtypes and shapes, each file held to its size.

Only headers are read, so that a model of any size takes milliseconds; nothing in them is believed. No torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspec.disk import check_name
from deepspec.errors import DeepSpecError, InputError, TargetError

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
"""Names the shards, where the weights are in several files."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git left in the place of a large one."""

_LENGTH = 8
_LONGEST_HEADER = 100_000_000
_SHOWN = 5
_BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}  # fmt: skip
"""Bits of a value; of a dtype that is newer than this table, sizes are not checked."""

DTYPES: Mapping[str, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Dtypes that a target computes in, as torch and specs name them -> as safetensors names them."""
VALUE_BYTES: Mapping[str, int] = {name: _BITS[stored] // 8 for name, stored in DTYPES.items()}
"""Dtype, as torch names it -> bytes of one value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorHead:
    """One tensor, as its file's header tells it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Return the bits of one of them; 16 for a dtype that is newer than the table."""
        return _BITS.get(self.dtype, 16)


def read_heads(folder: Path, wrong: type[InputError] = TargetError) -> dict[str, TensorHead]:
    """Return every tensor in the weights of a checkpoint's folder.

    Args:
        folder: holds `model.safetensors`, or shards and their index.
        wrong: class of the errors.

    Raises:
        InputError: of the class given: a file is missing, a git-lfs pointer, cut off or no safetensors.
    """
    if _is_there(folder / WEIGHTS):
        return read_file_heads(folder / WEIGHTS, wrong)
    placed = read_placed(folder, wrong)
    names = sorted(set(placed.values()))
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        told = f"{SHARDS} names {len(names)} files, of which {listed(missing)} {_are(missing)} not there"
        raise wrong(f"{folder}: {told}; fetch {'it' if len(missing) == 1 else 'them'} again")
    found: dict[str, TensorHead] = {}
    for name in names:
        heads = read_file_heads(folder / name, wrong)
        lacking = sorted(tensor for tensor, file in placed.items() if file == name and tensor not in heads)
        if lacking:
            raise wrong(f"{folder / name} lacks {listed(lacking)}, which {SHARDS} says it holds; fetch it again")
        found |= heads
    return found


def read_placed(folder: Path, wrong: type[InputError] = TargetError) -> dict[str, str]:
    """Return tensor -> file, as the index of the shards in a folder says; errors as in `read_heads`."""
    path = folder / SHARDS
    if not _is_there(path):
        raise wrong(f"{folder}: neither {WEIGHTS} nor {SHARDS}; is the folder a checkpoint, and fetched whole?")
    placed = read_object(path, wrong).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise wrong(f"{path} has no weight_map of tensors to files; fetch it again")
    for name in placed.values():
        try:
            check_name(name, str(path))
        except DeepSpecError as error:
            raise wrong(str(error)) from error
    return placed


def read_file_heads(path: Path, wrong: type[InputError] = TargetError) -> dict[str, TensorHead]:
    """Return every tensor of one file; errors as in `read_heads`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(len(POINTER))
            length = int.from_bytes(first[:_LENGTH], "little")
            if first == POINTER:
                raise wrong(_pointer_told(path))
            if size < _LENGTH or length > min(size - _LENGTH, _LONGEST_HEADER):
                raise wrong(f"{path} is no safetensors file, or cut off: it has {size:,} bytes; fetch it again")
            file.seek(_LENGTH)
            header = file.read(length)
    except OSError as error:
        raise wrong(_unread(path, error)) from error
    told = _parsed(header, path, wrong)
    told.pop("__metadata__", None)
    return _heads(told, size - _LENGTH - length, path, wrong)


def read_bytes(folder: Path, name: str) -> bytes:
    """Return a tensor of a checkpoint, as it lies in its file; errors as in `read_heads`."""
    path = folder / (WEIGHTS if _is_there(folder / WEIGHTS) else read_placed(folder)[name])
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        begin, end = _parsed(file.read(length), path, TargetError)[name]["data_offsets"]
        file.seek(_LENGTH + length + begin)
        return file.read(end - begin)


def read_object(path: Path, wrong: type[InputError] = TargetError) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        InputError: of the class given: it is not there, a git-lfs pointer, or holds something else.
    """
    try:
        return _parsed(path.read_bytes(), path, wrong)
    except OSError as error:
        raise wrong(_unread(path, error)) from error


def check_pointer(path: Path, wrong: type[InputError] = TargetError) -> None:
    """Refuse a git-lfs pointer.

    Raises:
        InputError: of the class given: the file is one, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            first = file.read(len(POINTER))
    except OSError as error:
        raise wrong(_unread(path, error)) from error
    if first == POINTER:
        raise wrong(_pointer_told(path))


def is_file(path: Path) -> bool:
    """Return whether a file is there; a name that no file can have names none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _pointer_told(path: Path) -> str:
    """Return what to say of a file that is a git-lfs pointer."""
    return f"{path} is a git-lfs pointer, not the file itself; run in its folder: git lfs pull"


def listed(names: Sequence[str]) -> str:
    """Return names for a message: the first few, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _parsed(data: bytes, path: Path, wrong: type[InputError]) -> dict[str, Any]:
    if data.startswith(POINTER):
        raise wrong(_pointer_told(path))
    try:
        value = json.loads(data.decode())
        json.dumps(value, ensure_ascii=False).encode()  # names with half of a character cannot be hashed or shown
    except (ValueError, RecursionError) as error:
        raise wrong(
            f"{path} cannot be read: it is not JSON: {error or type(error).__name__}; fetch or save it again"
        ) from error
    if not isinstance(value, dict):
        raise wrong(f"{path} holds {type(value).__name__}, wanted a JSON object")
    return value


def _heads(told: Mapping[str, Any], room: int, path: Path, wrong: type[InputError]) -> dict[str, TensorHead]:
    """Return the tensors that a header tells of; they must fill the file without holes."""
    found: dict[str, TensorHead] = {}
    places: list[tuple[int, int]] = []
    for name, each in told.items():
        head, begin, end = _head(each, f"{path}: tensor {name!r}", wrong)
        bits = _BITS.get(head.dtype)
        if bits is not None and (end - begin) * 8 != head.values * bits:
            size = f"{end - begin:,} bytes for {head.dtype} {list(head.shape)}"
            raise wrong(f"{path}: tensor {name!r} has {size}; the file is damaged, fetch it again")
        found[name] = head
        places.append((begin, end))
    at = 0
    for begin, end in sorted(places):
        if begin != at:
            raise wrong(f"{path}: its tensors overlap or leave holes; the file is damaged, fetch it again")
        at = end
    if at != room:
        raise wrong(f"{path} is cut off: {room:,} bytes of tensors, its header says {at:,}; fetch it again")
    return found


def _head(told: Any, what: str, wrong: type[InputError]) -> tuple[TensorHead, int, int]:
    try:
        dtype, shape, (begin, end) = told["dtype"], told["shape"], told["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise wrong(f"{what} lacks dtype, shape or data_offsets; the file is damaged, fetch it again") from error
    sizes = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not isinstance(dtype, str) or not all(type(size) is int and size >= 0 for size in sizes) or begin > end:
        raise wrong(f"{what} has a dtype, shape or data_offsets of a wrong kind; the file is damaged, fetch it again")
    return TensorHead(dtype=dtype, shape=tuple(shape)), begin, end


def _unread(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist; is its folder a checkpoint, and fetched whole?"
    return f"{path} cannot be read: {error.strerror}; check the folder"


def _is_there(path: Path) -> bool:
    """Return whether a name is taken, be it by a link that leads nowhere."""
    return path.exists() or path.is_symlink()


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"

"""What the header of a GGUF file says of the target in it. No torch, and no array is kept: a plan is checked by it."""

from pathlib import Path
from typing import BinaryIO

from deepspec.errors import TargetError

_WHOLE = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 7: 1, 10: 8, 11: 8}
_FLOATS = {6: 4, 12: 8}
_SIZES = _WHOLE | _FLOATS
"""GGUF type of a number -> bytes."""
_STRING, _ARRAY = 8, 9

_MAGIC = b"GGUF"
"""With which such a file begins."""


def is_gguf(path: Path) -> bool:
    """Return whether a file is there and begins as a GGUF file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def gguf_header(path: Path) -> dict[str, str | int]:
    """Return the texts and whole numbers of a GGUF file's header, and of each array its length.

    Raises:
        TargetError: it is no GGUF file, or cut off.
    """
    found: dict[str, str | int] = {}
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise TargetError(f"{path} is no GGUF file; check the path")
        file.seek(16)  # version, number of tensors
        for _ in range(_number(file, 8)):
            name, kind = _text(file), _number(file, 4)
            if kind == _STRING:
                found[name] = _text(file)
            elif kind in _WHOLE:
                found[name] = _number(file, _WHOLE[kind])
            elif kind == _ARRAY:
                found[name] = _skip_items(file)
            else:
                _skip(file, kind)
    return found


def another_target(path: Path, num_layers: int, hidden_size: int) -> str | None:
    """Return what tells a GGUF file from that of a target of so many layers and such a width; None: nothing does.

    Raises:
        TargetError: it is no GGUF file, or cut off.
    """
    header = gguf_header(path)
    arch = header.get("general.architecture")
    heads = int(header.get(f"{arch}.nextn_predict_layers", 0))
    wanted = {f"{arch}.block_count": num_layers + heads, f"{arch}.embedding_length": hidden_size}
    for key, value in wanted.items():
        if header.get(key, value) != value:
            told = key.removeprefix(f"{arch}.")
            return f"{path.name}, a GGUF file of another target: its {told} is {header[key]}, wanted {value}"
    if "tokenizer.ggml.tokens" not in header:
        return f"{path.name}, a GGUF file without a tokenizer (a projector or an adapter?); name the target's own"
    return None


def _skip_items(file: BinaryIO) -> int:
    """Read past an array's items and return how many there were."""
    element, count = _number(file, 4), _number(file, 8)
    if element in _SIZES:
        file.seek(_SIZES[element] * count, 1)
    else:
        for _ in range(count):
            _skip(file, element)
    return count


def _skip(file: BinaryIO, kind: int) -> None:
    if kind in _SIZES:
        file.seek(_SIZES[kind], 1)
    elif kind == _STRING:
        file.seek(_number(file, 8), 1)
    elif kind == _ARRAY:
        _skip_items(file)
    else:
        raise TargetError(f"{file.name}: unknown GGUF type {kind}; the file is damaged or newer than this reader")


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, 8)).decode()


def _number(file: BinaryIO, size: int) -> int:
    data = file.read(size)
    if len(data) != size:
        raise TargetError(f"{file.name}: the GGUF file ends within its header; fetch it again")
    return int.from_bytes(data, "little")

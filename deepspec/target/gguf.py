"""What transformers leaves out when it reads a GGUF file: how the tokenizer splits text before it merges.

A wrong split gives other tokens than the engine's for the same text: contexts that the target never saw.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tokenizers import pre_tokenizers

from deepspec.errors import TargetError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""GGUF type of a number -> bytes."""
_STRING, _ARRAY = 8, 9

_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

SPLITS: Mapping[str, Any] = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
}
"""`tokenizer.ggml.pre` -> the split that llama.cpp makes, where transformers makes another."""


def mend_split(tokenizer: Any, gguf: Path) -> None:
    """Let a tokenizer that transformers read from a GGUF file split text as the file says."""
    name = read_text(gguf, "tokenizer.ggml.pre")
    if name in SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = SPLITS[name]


def read_text(path: Path, key: str) -> str:
    """Return one text from the metadata of a GGUF file, empty where it has none of that name.

    Raises:
        TargetError: it is no GGUF file, or cut off.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise TargetError(f"{path} is no GGUF file; check the path")
        file.seek(16)  # version, number of tensors
        for _ in range(_number(file, 8)):
            name, kind = _text(file), _number(file, 4)
            if name == key and kind == _STRING:
                return _text(file)
            _skip(file, kind)
    return ""


def _skip(file: BinaryIO, kind: int) -> None:
    if kind in _SIZES:
        file.seek(_SIZES[kind], 1)
    elif kind == _STRING:
        file.seek(_number(file, 8), 1)
    elif kind == _ARRAY:
        element, count = _number(file, 4), _number(file, 8)
        if element in _SIZES:
            file.seek(_SIZES[element] * count, 1)
        else:
            for _ in range(count):
                _skip(file, element)
    else:
        raise TargetError(f"{file.name}: unknown GGUF type {kind}; the file is damaged or newer than this reader")


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, 8)).decode()


def _number(file: BinaryIO, size: int) -> int:
    data = file.read(size)
    if len(data) != size:
        raise TargetError(f"{file.name}: the GGUF file ends within its header; fetch it again")
    return int.from_bytes(data, "little")

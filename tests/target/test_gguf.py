"""GGUF metadata, written here byte by byte."""

import struct
from pathlib import Path

import pytest

from deepspec.errors import TargetError
from deepspec.families.gguf_header import gguf_header
from deepspec.target.gguf import SPLITS, mend_split
from tests.given.targets.tiny import tokenizer


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def write(path: Path, pre: str = "smollm") -> Path:
    """One entry of each kind before the one that is wanted."""
    entries = [
        text("a.number") + struct.pack("<II", 4, 7),
        text("a.text") + struct.pack("<I", 8) + text("x"),
        text("numbers") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, 2, 3),
        text("texts") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two"),
        text("tokenizer.ggml.pre") + struct.pack("<I", 8) + text(pre),
    ]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
    return path


def test_a_text_is_found_behind_entries_of_every_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf")
    assert gguf_header(path) == {"a.number": 7, "a.text": "x", "numbers": 3, "texts": 2, "tokenizer.ggml.pre": "smollm"}


def test_smollm_splits_digits_off_before_anything_else() -> None:
    pieces = [piece for piece, _ in SPLITS["smollm"].pre_tokenize_str("a:\n\n12 b")]
    assert pieces == ["a", ":", "ĊĊ", "1", "2", "Ġb"]


def test_only_a_known_split_is_mended(tmp_path: Path) -> None:
    fast = tokenizer()
    before = str(fast.backend_tokenizer.pre_tokenizer)
    mend_split(fast, write(tmp_path / "x.gguf", pre="default"))
    assert str(fast.backend_tokenizer.pre_tokenizer) == before
    mend_split(fast, write(tmp_path / "x.gguf"))
    assert "Digits" in str(fast.backend_tokenizer.pre_tokenizer)


@pytest.mark.parametrize("data", [b"nope", b"GGUF" + bytes(10), b"GGUF" + struct.pack("<IQQ", 3, 0, 1)])
def test_what_is_no_gguf_file_is_a_named_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(TargetError, match="GGUF file"):
        gguf_header(tmp_path / "x.gguf")

"""Caches of many terabytes exist in this layout: changing it needs a new VERSION and a reader for the old one."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from safetensors import safe_open
from safetensors.torch import load_file

from deepspec.records.batch import Record, supervises
from deepspec.target_cache.codec import CODECS, encode
from deepspec.target_cache.index import write_index
from deepspec.target_cache.part import COLUMNS, PartWriter


def record(sample_id: str, length: int, answer: int) -> Record:
    """Two layers of width 2; every value can be read off: position.layer, as bf16 has it."""
    hidden = torch.tensor([[p + 0.25, -p, p + 0.5, 2.0**-p] for p in range(length)])
    mask = torch.arange(length) >= length - answer
    return Record(
        sample_id=sample_id,
        input_ids=torch.arange(length) + 10,
        loss_mask=mask,
        hidden=hidden.bfloat16(),
        last_hidden=torch.tensor([[p * 1.0, 100.0] for p in range(length)]).bfloat16()[supervises(mask)],
    )


def write(path: Path, codec: str) -> PartWriter:
    writer = PartWriter(path, shard=2, part=1, codec=codec)
    writer.add(record("a", 3, 1), "train")
    writer.add(record("b", 2, 1), "validation")
    writer.close()
    return writer


HEADER = (
    '{"__metadata__":{"format":"deepspec.target_cache","version":"1","codec":"bf16"},'
    '"states":{"dtype":"BF16","shape":[14,2],"data_offsets":[0,56]},'
    '"input_ids":{"dtype":"I32","shape":[5],"data_offsets":[56,76]},'
    '"loss_mask":{"dtype":"U8","shape":[5],"data_offsets":[76,81]}}'
)
STATES = (
    "803e 0000 003f 803f "  # a, position 0: layer 0 is (0.25, 0), layer 1 is (0.5, 1)
    "a03f 80bf c03f 003f "  # 1: (1.25, -1), (1.5, 0.5)
    "1040 00c0 2040 803e "  # 2: (2.25, -2), (2.5, 0.25)
    "803f c842 0040 c842 "  # last hidden state at 1 and 2: beside and at the supervised token
    "803e 0000 003f 803f a03f 80bf c03f 003f "  # b, positions 0 and 1
    "0000 c842 803f c842"  # last hidden state at 0 and 1
)
TOKENS = "0a000000 0b000000 0c000000 0a000000 0b000000 0000010001"


def test_part_layout_is_frozen(tmp_path: Path) -> None:
    write(tmp_path / "part", "bf16")
    data = (tmp_path / "part").read_bytes()
    assert data[:8] == (4088).to_bytes(8, "little")
    assert data[8:4096] == HEADER.encode().ljust(4088)
    assert data[4096:] == bytes.fromhex(STATES + TOKENS)


def test_index_rows_are_frozen(tmp_path: Path) -> None:
    columns = write(tmp_path / "part", "bf16").columns
    assert list(columns) == list(COLUMNS)
    assert columns == {
        "sample_id": ["a", "b"],
        "split": ["train", "validation"],
        "shard": [2, 2],
        "part": [1, 1],
        "length": [3, 2],
        "supervised": [1, 1],
        "token_start": [0, 3],
        "offset": [4096, 4128],
        "bytes": [32, 24],
        "checksum": [13475734936195342298, 4089338401641546956],
    }
    write_index(tmp_path / "index.parquet", columns)
    table = pq.read_table(tmp_path / "index.parquet")
    assert {field.name: str(field.type) for field in table.schema} == dict(COLUMNS)
    assert table.to_pydict() == columns


VALUES = torch.tensor([[1.0, -2.0, 0.5, 448.0], [0, 0, 0, 0], [0.0, 1000.0, -7.0, 0.125]]).bfloat16()


def test_lossless_block_is_frozen() -> None:
    """bf16 is sign, 8 bits of exponent, 7 of mantissa; 1.0 is 0x3f80: exponent 7f, mantissa and sign 00."""
    block = np.concatenate(encode(CODECS["bf16-zstd"], [VALUES[:2], VALUES[2:]]))
    exponents = zstandard.ZstdDecompressor().decompress(block[:-12].tobytes())
    assert exponents.hex(" ", 4) == "7f807e87 00000000 0088817c"
    assert block[-12:].tobytes().hex(" ", 4) == "000100c0 00000000 00f4c100"
    assert torch.equal(CODECS["bf16-zstd"].decode(block, 3, 4), VALUES)


def test_fp8_block_is_frozen() -> None:
    """Rows are scaled by 2^-1, 1 and 2^-2; e4m3 of 1/2 is 0x30, of 224 is 0x76; 250 rounds to 256, 0x78."""
    (block,) = encode(CODECS["fp8"], [VALUES[:1], VALUES[1:]])
    data = zstandard.ZstdDecompressor().decompress(block.tobytes())
    assert data.hex(" ") == "01 00 02 30 b8 28 76 00 00 00 00 00 78 be 10"
    expected = VALUES.clone()
    expected[2, 1] = 1024.0
    assert torch.equal(CODECS["fp8"].decode(block, 3, 4), expected)


@pytest.mark.parametrize("codec", ["bf16", "bf16-zstd", "fp8"])
def test_any_safetensors_reader_opens_a_part(tmp_path: Path, codec: str) -> None:
    write(tmp_path / "part", codec)
    tensors = load_file(tmp_path / "part")
    assert tensors["input_ids"].tolist() == [10, 11, 12, 10, 11]
    assert tensors["loss_mask"].tolist() == [0, 0, 1, 0, 1]
    assert tensors["states"].dtype == (torch.bfloat16 if codec == "bf16" else torch.uint8)
    with safe_open(tmp_path / "part", framework="pt") as file:
        assert file.metadata() == {"format": "deepspec.target_cache", "version": "1", "codec": codec}


def test_header_is_json_of_fixed_size(tmp_path: Path) -> None:
    write(tmp_path / "part", "fp8")
    assert json.loads((tmp_path / "part").read_bytes()[8:4096])["states"]["data_offsets"][0] == 0

"""The public cache form: written here byte by byte, read back, and refused where it is damaged."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from deepspec.cache.public import PublicCache
from deepspec.errors import CorruptArtifactError, SourceError

MANIFEST: dict[str, Any] = {
    "version": 2,
    "index_record_size": 56,
    "token_dtype": "int32",
    "mask_dtype": "uint8",
    "hidden_dtype": "bfloat16",
    "hidden_size": 2,
    "num_samples": 1,
    "target_layer_ids": [1, 3],
    "shards": [{"shard_id": 0, "file_name": "shard-00000.bin"}],
}


def write(folder: Path, attended: str = "010101", width: int = 2, **changes: Any) -> Path:
    """Write one sample of three tokens: ids 7 8 9, mask 0 1 1, two layers and the last state."""
    ids, mask = "07000000 08000000 09000000", "000101"
    layers = "803f 0040 4040 8040" * 3 * (width // 2)  # of width 2: 1, 2 | 3, 4 at each position
    last = "003f 803e" * 3 * (width // 2)  # 0.5, 0.25
    (folder / "shard-00000.bin").write_bytes(bytes.fromhex(f"{ids}{attended}{mask}{layers}{last}"))
    (folder / "samples.idx").write_bytes(struct.pack("<QIIQQQQQ", 5, 0, 3, 0, 12, 15, 18, 18 + 12 * width))
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, "hidden_size": width, **changes}))
    return folder


def test_one_sample_can_be_read_off(tmp_path: Path):
    (record,) = PublicCache(write(tmp_path))
    assert record.sample_id == "5"
    assert record.input_ids.tolist() == [7, 8, 9]
    assert record.loss_mask.tolist() == [False, True, True]
    assert record.hidden.tolist() == [[1.0, 2.0, 3.0, 4.0]] * 3
    assert record.last_hidden.tolist() == [[0.5, 0.25]] * 3


def test_padding_at_the_end_is_dropped(tmp_path: Path):
    (record,) = PublicCache(write(tmp_path, attended="010100"))
    assert record.input_ids.tolist() == [7, 8]
    assert record.hidden.shape == (2, 4)
    assert torch.equal(record.loss_mask, torch.tensor([False, True]))


def test_an_attention_mask_with_holes_is_refused(tmp_path: Path):
    with pytest.raises(SourceError, match="sample 5: its attention mask has holes"):
        list(PublicCache(write(tmp_path, attended="010001")))


@pytest.mark.parametrize("changes", [{"version": 1}, {"hidden_dtype": "float16"}, {"num_samples": 2}])
def test_another_form_is_refused(tmp_path: Path, changes: dict[str, Any]):
    with pytest.raises(SourceError, match="wanted"):
        PublicCache(write(tmp_path, **changes))


def test_a_shard_that_ends_early_names_the_sample(tmp_path: Path):
    shard = write(tmp_path) / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(SourceError, match="shard 0 ends inside sample 5"):
        list(PublicCache(tmp_path))


def test_a_name_outside_the_folder_is_refused(tmp_path: Path):
    write(tmp_path, shards=[{"shard_id": 0, "file_name": "../../x"}])
    with pytest.raises(CorruptArtifactError, match="only plain names are accepted"):
        PublicCache(tmp_path)

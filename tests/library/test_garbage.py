"""What is garbage: nothing young, nothing that a mark names, nothing that a named ref was made from."""

import os
import time
from pathlib import Path

import pytest

from deepspec.artifacts import ArtifactRef
from deepspec.catalog import set_ref
from deepspec.errors import SpecError
from deepspec.garbage import delete_garbage, find_garbage
from deepspec.publish import Out
from deepspec.specs import Spec
from deepspec.store import Store

LATER = time.time() + 1e6


class Continued(Spec):
    continue_from: str | None = None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, kind: str, digit: str, spec: Spec | None = None, **inputs: ArtifactRef) -> ArtifactRef:
    out = Out(store, kind, digit * 32, inputs, Path(store.root).parent / "scratch")
    part = out.scratch / "p"
    part.write_text("part")
    out.commit_part(0, 0, {"p": part}, {})
    out.file("a.txt").write_text("x")
    return out.publish(spec or Spec(), 1, {})


def test_only_what_no_mark_names_is_dead(store: Store, tmp_path: Path) -> None:
    ref = publish(store, "draft", "1")
    killed = Out(store, "draft", "1" * 32, {}, tmp_path / "scratch")
    killed.file("half").write_text("half")
    store.write_bytes(f"{ref.prefix}/claims/x/shard-00000.json", b"{}")
    store.write_bytes(f"{ref.prefix}/parts/of-other-inputs/shard-00000-part-00000.json", b"{}")
    partial = Out(store, "answers", "2" * 32, {}, tmp_path / "scratch")
    (tmp_path / "p").write_text("part")
    partial.commit_part(0, 0, {"p": tmp_path / "p"}, {})
    partial.file("half").write_text("half")
    store.write_bytes(f"{partial.prefix}/checkpoints/last/step-1", b"state")
    store.write_bytes(f"logs/draft-{'1' * 32}-20260101T000000.log", b"kept")
    store.write_bytes(f"logs/draft-{'9' * 32}-20260101T000000.log", b"of nothing")
    found = find_garbage(store, LATER)
    assert found.artifacts == ()
    assert set(found.keys) == {
        f"{ref.prefix}/{killed.attempt}/half",
        f"{ref.prefix}/claims/x/shard-00000.json",
        f"{ref.prefix}/parts/of-other-inputs/shard-00000-part-00000.json",
        f"{partial.prefix}/{partial.attempt}/half",
        f"logs/draft-{'9' * 32}-20260101T000000.log",
    }
    delete_garbage(store, found)
    assert not find_garbage(store, LATER).keys
    assert Out(store, "draft", "1" * 32, {}, tmp_path / "again").part(0, 0) is not None


def test_what_is_young_is_kept(store: Store, tmp_path: Path) -> None:
    killed = Out(store, "draft", "1" * 32, {}, tmp_path / "scratch")
    for name, age in (("old", 7200), ("young", 60)):
        path = killed.file(name)
        path.write_text(name)
        os.utime(path, (time.time() - age,) * 2)
    found = find_garbage(store, time.time() - 3600)
    assert list(found.keys) == [f"draft/{'1' * 32}/{killed.attempt}/old"]


def test_a_named_ref_keeps_all_that_it_was_made_from(store: Store) -> None:
    prompts = publish(store, "prompts", "a")
    first = publish(store, "draft", "b", prompts=prompts)
    second = publish(store, "draft", "c", Continued(continue_from=first.address), prompts=prompts)
    publish(store, "draft", "d", prompts=prompts)
    set_ref(store, "baseline", second)
    found = find_garbage(store, LATER, unreferenced=True)
    assert found.artifacts == (("draft", "d" * 32),)
    delete_garbage(store, found)
    assert find_garbage(store, LATER, unreferenced=True).artifacts == ()
    assert store.exists(f"{first.prefix}/manifest.json")


def test_without_a_ref_nothing_is_unreferenced(store: Store) -> None:
    publish(store, "prompts", "a")
    with pytest.raises(SpecError, match="no named refs, so no artifact is referenced and all would go"):
        find_garbage(store, LATER, unreferenced=True)

"""Storage that fails: recovery with the same bytes, or an error that says what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepspec.artifacts import read_mark, sealed
from deepspec.errors import CorruptArtifactError
from deepspec.publish import Out
from deepspec.store import Store
from tests.cache.faulty import faulty_proxy
from tests.given.published.caches import build, opened, out_for, publish_answers, rows, spec_for


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, 6))])
def test_a_store_that_fails_now_and_then_changes_no_byte(
    target: Path, store: Store, s3: Store, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    import s3fs

    spec = spec_for(target, part_bytes=60_000)
    answers = publish_answers(store, tmp_path, [rows(12), rows(12, seed=1)])
    whole = build(spec, target, answers, store, tmp_path)
    with faulty_proxy(s3_server, share=0.05, seed=seed) as (url, made):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3fs.S3FileSystem.clear_instance_cache()
        shaky = Store(s3.root)
        ref = build(
            spec, target, publish_answers(shaky, tmp_path, [rows(12), rows(12, seed=1)]), shaky, tmp_path / "s3"
        )
        cache = opened(ref, shaky, tmp_path / "reader")
        read = [record.sample_id for record in cache.stream(cache.order("train", seed=0, epoch=0, window=2))]
    assert ref.content == whole.content
    assert sorted(read) == sorted(cache.index.sample_id(n) for n in cache.numbers("train"))
    assert sum(made.values()) - made["none"] > 0


FULL_DISK = """
import sys
from pathlib import Path
from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.errors import StoreError
from deepspec.store import Store
from tests.given.published.caches import build, spec_for

root, scratch, target, ref = sys.argv[1:]
answers = open_artifact(Store(root), ArtifactRef.model_validate_json(ref), Path(scratch))
try:
    build(spec_for(Path(target)), Path(target), answers, Store(root), Path(scratch))
except StoreError as error:
    print("named:", error)
"""


def test_a_full_disk_is_a_named_error_and_nothing_is_published(target: Path, store: Store, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here: a small disk cannot be mounted")
    answers = publish_answers(store, tmp_path, [rows(12)])
    small = tmp_path / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'
    command = [sys.executable, "-c", FULL_DISK, store.root, str(small), str(target), answers.ref.model_dump_json()]
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script, str(small), *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout
    assert "the same command goes on" in done.stdout
    assert not store.exists("target_cache/c/manifest.json")


def test_a_part_mark_that_names_another_folder_is_refused(target: Path, store: Store, tmp_path: Path) -> None:
    spec = spec_for(target)
    answers = publish_answers(store, tmp_path, [rows(6)])
    build(spec, target, answers, store, tmp_path)
    out: Out = out_for(store, tmp_path, answers)
    (key,) = [key for key in store.list("target_cache") if "/parts/" in key]
    mark = read_mark(store, key)
    files = {name: entry.model_copy(update={"key": f"../../{entry.key}"}) for name, entry in mark.files.items()}
    store.write_bytes(key, sealed(mark.model_copy(update={"files": files})))
    with pytest.raises(CorruptArtifactError, match="only plain names are accepted"):
        out.parts()

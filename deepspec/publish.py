"""Publishing: an attempt's folder, parts with their own commit marks, and the manifest last."""

import contextlib
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deepspec.artifacts import (
    MANIFEST,
    ArtifactRef,
    Manifest,
    PartMark,
    content_of,
    inputs_digest,
    new_attempt,
    read_manifest,
    read_mark,
    reference,
    sealed,
)
from deepspec.disk import FileEntry, check_name, checksum
from deepspec.errors import CorruptArtifactError, NotPublishedError
from deepspec.specs import Spec
from deepspec.store import Store

RESULT_PACKAGES = ("deepspec", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "zstandard")
"""Packages whose version can change bytes; written into every manifest."""

MOST_READ = 50
"""Manifests that are looked at for the nearest: each is a request, and among more none is expected to be found."""

MOST_DIFFERENCES = 3
"""An artifact that differs in more is another thing, not one that was expected to be found."""

_READERS = 16
"""Marks of parts read at the same time: there may be a hundred thousand, each a request."""


class Out:
    """Where one attempt of a stage writes.

    Args:
        store: where the artifact is published.
        kind: its kind.
        address: its address.
        inputs: the inputs with their contents.
        scratch: local scratch root.
    """

    def __init__(self, store: Store, kind: str, address: str, inputs: Mapping[str, ArtifactRef], scratch: Path) -> None:
        """Name the attempt and make its folders."""
        self.store = store
        self.kind = kind
        self.address = address
        self.inputs = dict(inputs)
        self.prefix = f"{kind}/{address}"
        self.attempt = new_attempt()
        self._parts = f"{self.prefix}/parts/{inputs_digest(inputs)}"
        self.scratch = scratch / kind / address / inputs_digest(inputs)
        """Folder that the next attempt at the same work finds again: ledgers, checkpoints."""
        self.folder = store.local_path(f"{self.prefix}/{self.attempt}") or self.scratch / self.attempt
        """Folder for plain files; every file in it is published under its name."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._started = datetime.now(UTC)
        self._present: dict[str, int] | None = None

    def file(self, name: str) -> Path:
        """Return where to write the file of that name."""
        check_name(name, self.prefix)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def part(self, shard: int, part: int) -> PartMark | None:
        """Return the commit mark of a part, or None where it is not committed or its files are lost."""
        return self._read_mark(f"{self._parts}/{_part_name(shard, part)}.json")

    def commit_part(
        self,
        shard: int,
        part: int,
        files: Mapping[str, Path],
        counts: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> PartMark:
        """Publish the files of one part, then its mark; when another attempt won, return the winner's mark.

        Args:
            shard: number of the shard.
            part: number of the part within the shard.
            files: name in the artifact -> local file (moved where the store is a local folder).
            counts: what the part holds.
            extra: anything else that `finish` needs.
        """
        entries = {name: self._put(name, path) for name, path in files.items()}
        mark = PartMark(shard=shard, part=part, files=entries, counts=dict(counts), extra=dict(extra or {}))
        key = f"{self._parts}/{_part_name(shard, part)}.json"
        if self.store.create(key, sealed(mark)):
            return mark
        return self._read_mark(key) or mark

    def parts(self) -> list[PartMark]:
        """Return the committed parts in (shard, part) order."""
        keys = [key for key in self.store.list(self._parts) if key.endswith(".json")]
        self._present = self.store.sizes(self.prefix)
        with ThreadPoolExecutor(_READERS) as pool:
            marks = [mark for mark in pool.map(self._read_mark, keys) if mark is not None]
        return sorted(marks, key=lambda mark: (mark.shard, mark.part))

    def discard(self) -> None:
        """Remove the files of this attempt that no part names: the next attempt writes its own."""
        named = {entry.key for mark in self.parts() for entry in mark.files.values()}
        for path in self.folder.glob("*"):
            if path.is_file() and f"{self.attempt}/{path.name}" not in named:
                path.unlink(missing_ok=True)

    def publish(self, spec: Spec, version: int, counts: Mapping[str, Any]) -> ArtifactRef:
        """Upload the plain files, list those of the parts, and write the manifest: the artifact exists from here."""
        files = {path.name: self._put(path.name, path) for path in sorted(self.folder.glob("*")) if path.is_file()}
        for mark in self.parts():
            files.update(mark.files)
        manifest = Manifest(
            kind=self.kind,
            version=version,
            address=self.address,
            content=content_of(files),
            spec=spec.model_dump(mode="json"),
            inputs=self.inputs,
            files=files,
            counts=dict(counts),
            provenance=_provenance(self._started),
        )
        manifest = self._commit(manifest)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return reference(self.store, manifest)

    def _commit(self, manifest: Manifest) -> Manifest:
        key = f"{self.prefix}/{MANIFEST}"
        data = sealed(manifest)
        if self.store.create(key, data):
            return manifest
        present = read_manifest(self.store, self.kind, self.address)
        if present is not None and _same_inputs(present, manifest) and is_complete(self.store, present):
            return present  # another attempt at the same work won
        self.store.write_bytes(key, data)
        return manifest

    def _put(self, name: str, path: Path) -> FileEntry:
        check_name(name, self.prefix)
        entry = FileEntry(key=f"{self.attempt}/{name}", size=path.stat().st_size, checksum=checksum(path))
        self.store.put_file(path, f"{self.prefix}/{entry.key}")
        return entry

    def _read_mark(self, key: str) -> PartMark | None:
        try:
            mark = read_mark(self.store, key)
        except NotPublishedError:
            return None
        if all(self._holds(entry) for entry in mark.files.values()):
            return mark
        self.store.delete(key)  # the mark outlived its data: the part is made again
        return None

    def _holds(self, entry: FileEntry) -> bool:
        key = f"{self.prefix}/{entry.key}"
        if self._present is None:
            self._present = self.store.sizes(self.prefix)
        if key not in self._present:
            with contextlib.suppress(NotPublishedError):
                self._present[key] = self.store.size(key)
        return self._present.get(key) == entry.size


def is_complete(store: Store, manifest: Manifest) -> bool:
    """Return whether every file of a manifest is there with its size (bytes are checked when read)."""
    prefix = f"{manifest.kind}/{manifest.address}"
    sizes = store.sizes(prefix)
    return all(sizes.get(f"{prefix}/{entry.key}") == entry.size for entry in manifest.files.values())


def is_fresh(store: Store, kind: str, address: str, inputs: Mapping[str, ArtifactRef]) -> bool:
    """Return whether an artifact is published, complete, and made from the inputs' present contents."""
    manifest = read_manifest(store, kind, address)
    if manifest is None or not is_complete(store, manifest):
        return False
    recorded = {name: ref.content for name, ref in manifest.inputs.items()}
    return recorded == {name: ref.content for name, ref in inputs.items()}


def nearest(store: Store, kind: str, version: int, spec: Spec, inputs: Mapping[str, ArtifactRef]) -> str | None:
    """Return which published artifact comes nearest to what is wanted, and in what it differs; None: none comes near.

    It answers why something is made although its like is there.

    Args:
        store: where.
        kind: of what is wanted.
        version: of the stage that makes it.
        spec: from which.
        inputs: name -> of what.
    """
    names = [key.split("/")[1] for key in store.list(kind) if key.endswith(f"/{MANIFEST}")]
    if len(names) > MOST_READ:
        return None
    told = [
        (manifest, list(_differences(manifest, version, spec, inputs)))
        for name in names
        if (manifest := _readable(store, kind, name)) is not None
    ]
    near = [(manifest, differences) for manifest, differences in told if 0 < len(differences) <= MOST_DIFFERENCES]
    if not near:
        return None
    manifest, differences = min(near, key=lambda pair: len(pair[1]))
    return f"{kind}/{manifest.address[:12]} was made with {', '.join(differences)}"


def _readable(store: Store, kind: str, address: str) -> Manifest | None:
    """Return a manifest; None for one that is gone or damaged, which is no reason not to make something else."""
    with contextlib.suppress(CorruptArtifactError):
        return read_manifest(store, kind, address)
    return None


def _differences(manifest: Manifest, version: int, spec: Spec, inputs: Mapping[str, ArtifactRef]) -> Iterator[str]:
    """Give each thing in which an artifact differs; nothing for one that cannot be compared."""
    try:
        before = _flat(type(spec).model_validate(manifest.spec).identity())
    except ValidationError:  # it stands for another stage, or its fields are gone
        return
    if manifest.version != version:
        yield f"version {manifest.version} of the stage (now {version})"
    for name in sorted(manifest.inputs.keys() | inputs.keys()):
        there, wanted = manifest.inputs.get(name), inputs.get(name)
        if (there and there.address) != (wanted and wanted.address):
            yield f"{'another' if there and wanted else 'no' if wanted else 'a'} {name}"
    now = _flat(spec.identity())
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name} {before.get(name, 'as by default')} (now {now.get(name, 'as by default')})"


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of a spec's identity by their whole names."""
    found: dict[str, Any] = {}
    for name, value in identity.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def drop_artifact(store: Store, kind: str, address: str) -> int:
    """Delete an artifact, its mark first; return how many keys went."""
    prefix = f"{kind}/{address}"
    keys = store.list(prefix)
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
        store.delete(key)
    folder = store.local_path(prefix)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return len(keys)


def _provenance(started: datetime) -> dict[str, Any]:
    """Return what made an artifact: code, versions, host and times."""
    return {
        "git": _git_sha(),
        "packages": {name: found for name in RESULT_PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _git_sha() -> str | None:
    """Return the commit of the source tree this runs from; None outside a checkout."""
    return commit_of(Path(__file__).resolve().parent.parent)


def commit_of(tree: Path) -> str | None:
    """Return the commit that a checkout is at, read without starting git; None where it is none.

    In a further worktree `.git` is a file that names the folder of its HEAD, and `commondir` there that of branches.
    """
    git = tree / ".git"
    with contextlib.suppress(OSError, ValueError):
        if git.is_file():
            git = tree / git.read_text().removeprefix("gitdir: ").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        refs = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        loose = refs / name
        if loose.exists():
            return loose.read_text().strip()
        packed = (line.partition(" ") for line in (refs / "packed-refs").read_text().splitlines())
        return next((sha for sha, _, ref in packed if ref == name), None)
    return None


def _same_inputs(one: Manifest, other: Manifest) -> bool:
    return {k: v.content for k, v in one.inputs.items()} == {k: v.content for k, v in other.inputs.items()}


def _part_name(shard: int, part: int) -> str:
    return f"shard-{shard:05d}-part-{part:05d}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

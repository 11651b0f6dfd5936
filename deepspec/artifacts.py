"""Artifacts: what a stage publishes, and how it is opened again.

    <root>/<kind>/<address>/manifest.json                   the commit mark, written last
    <root>/<kind>/<address>/<attempt>/<name>                the files it names
    <root>/<kind>/<address>/parts/<inputs>/<part>.json      commit marks of parts, for stages made of shards

The *address* is known before the run (`deepspec/specs.py`). The *content* is a hash of the payload's checksums: a
consumer records the content of each input and is stale when it no longer matches. See docs/formats/artifacts.md.
"""

import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from deepspec.disk import FileEntry, check_name, is_sound, verify_file
from deepspec.errors import CorruptArtifactError, NotPublishedError
from deepspec.specs import digest
from deepspec.store import Store

MANIFEST = "manifest.json"


class ArtifactRef(BaseModel):
    """The few hundred bytes that travel between stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    address: str
    content: str
    uri: str

    @property
    def prefix(self) -> str:
        """Return the key prefix of the artifact in its store."""
        return f"{self.kind}/{self.address}"


class PartMark(BaseModel):
    """Commit mark of one part of one shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    part: int
    files: dict[str, FileEntry]
    counts: dict[str, Any]
    extra: dict[str, Any] = Field(default_factory=dict)


class Manifest(BaseModel):
    """The commit mark of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    version: int
    address: str
    content: str
    spec: dict[str, Any]
    inputs: dict[str, ArtifactRef]
    files: dict[str, FileEntry]
    counts: dict[str, Any]
    provenance: dict[str, Any]


_Mark = TypeVar("_Mark", Manifest, PartMark)


class Artifact:
    """A published artifact, opened for reading.

    Args:
        store: where it lies.
        manifest: its commit mark.
        scratch: local folder for files fetched from a remote store.
    """

    def __init__(self, store: Store, manifest: Manifest, scratch: Path) -> None:
        """Keep the manifest; no payload is read yet."""
        self.store = store
        self.manifest = manifest
        self.prefix = f"{manifest.kind}/{manifest.address}"
        self._scratch = scratch / "fetched" / manifest.kind / manifest.address
        self._verified: set[str] = set()

    @property
    def ref(self) -> ArtifactRef:
        """Return the reference that names this artifact with its content."""
        return reference(self.store, self.manifest)

    @property
    def counts(self) -> dict[str, Any]:
        """Return what the stage counted."""
        return self.manifest.counts

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        return sorted(self.manifest.files)

    def entry(self, name: str) -> FileEntry:
        """Return key, size and checksum of one file.

        Raises:
            NotPublishedError: the manifest names no such file.
        """
        if name not in self.manifest.files:
            raise NotPublishedError(f"{self.prefix} has no file {name!r}; it has: {', '.join(self.names())}")
        return self.manifest.files[name]

    def path(self, name: str) -> Path:
        """Return a local file with the verified bytes: the store's own where it is local, else fetched once.

        A copy fetched before that is damaged by now is fetched again.

        Raises:
            CorruptArtifactError: size or checksum differ from the manifest.
        """
        entry = self.entry(name)
        key = f"{self.prefix}/{entry.key}"
        own = self.store.local_path(key)
        local = own or self._scratch / entry.checksum.removeprefix("xxh3:") / name
        if own is None and local.exists() and (name in self._verified or is_sound(local, entry)):
            self._verified.add(name)
            return local
        if own is None:
            self.store.get_file(key, local)
            self._verified.discard(name)
        if name not in self._verified:
            verify_file(local, entry, f"{self.prefix}/{name}")
            self._verified.add(name)
        return local

    def read_bytes(self, name: str) -> bytes:
        """Return the verified bytes of one file."""
        return self.path(name).read_bytes()


def content_of(files: Mapping[str, FileEntry]) -> str:
    """Return the hash over the sorted payload checksums."""
    return digest(sorted((name, entry.checksum) for name, entry in files.items()))[:32]


def inputs_digest(inputs: Mapping[str, ArtifactRef]) -> str:
    """Return a short hash of the contents of the inputs: parts made from other contents are another set."""
    return digest({name: ref.content for name, ref in inputs.items()})[:12]


def reference(store: Store, manifest: Manifest) -> ArtifactRef:
    """Return the reference to a published artifact."""
    prefix = f"{manifest.kind}/{manifest.address}"
    return ArtifactRef(kind=manifest.kind, address=manifest.address, content=manifest.content, uri=store.uri(prefix))


def read_manifest(store: Store, kind: str, address: str) -> Manifest | None:
    """Return the commit mark of an artifact, or None where it is not published.

    Raises:
        CorruptArtifactError: the mark cannot be read, names another artifact, or names files outside its folder.
    """
    key = f"{kind}/{address}/{MANIFEST}"
    try:
        data = store.read_bytes(key)
    except NotPublishedError:
        return None
    try:
        manifest = _unsealed(Manifest, data)
    except ValueError as error:
        raise CorruptArtifactError(f"{store.uri(key)} is not a manifest: {error}; delete it to rebuild") from error
    if (manifest.kind, manifest.address) != (kind, address) or manifest.content != content_of(manifest.files):
        raise CorruptArtifactError(f"{store.uri(key)} does not describe itself; delete it to rebuild the artifact")
    _check_files(manifest.files, store.uri(key))
    return manifest


def read_mark(store: Store, key: str) -> PartMark:
    """Return the commit mark of a part.

    Raises:
        NotPublishedError: there is none.
        CorruptArtifactError: it cannot be read, or names files outside its artifact.
    """
    try:
        mark = _unsealed(PartMark, store.read_bytes(key))
    except ValueError as error:
        message = f"{store.uri(key)} is not a part's mark: {error}; delete it to redo that part"
        raise CorruptArtifactError(message) from error
    _check_files(mark.files, store.uri(key))
    return mark


def sealed(mark: Manifest | PartMark) -> bytes:
    """Return a commit mark as JSON, with the sha256 of everything else in it."""
    told = mark.model_dump(mode="json")
    return json.dumps({**told, "sha256": digest(told)}, indent=1).encode()


def _unsealed(kind: type[_Mark], data: bytes) -> _Mark:
    """Return the mark that these bytes are, checked against their seal; ValueError where they are not one."""
    told = json.loads(data)
    if not isinstance(told, dict) or told.pop("sha256", None) != digest(told):
        raise ValueError("its sha256 does not match its content")
    return kind.model_validate(told)


def _check_files(files: Mapping[str, FileEntry], where: str) -> None:
    for name, entry in files.items():
        for step in (name, *entry.key.split("/")):
            check_name(step, where)


def open_artifact(store: Store, ref: ArtifactRef, scratch: Path) -> Artifact:
    """Open a published artifact.

    Raises:
        NotPublishedError: it has no commit mark.
    """
    manifest = read_manifest(store, ref.kind, ref.address)
    if manifest is None:
        raise NotPublishedError(f"{store.uri(ref.prefix)} is not published; run the stage that makes it")
    return Artifact(store, manifest, scratch)


def lineage(store: Store, roots: Iterable[ArtifactRef], through: Iterable[str] = ()) -> dict[str, Manifest]:
    """Return the manifests of artifacts and of everything that they were made from, by `kind/address`.

    Args:
        store: where they lie.
        roots: with which to begin.
        through: fields of specs that name an artifact of the same kind, which is followed like an input.
    """
    found: dict[str, Manifest] = {}
    waiting = [(root.kind, root.address) for root in roots]
    while waiting:
        kind, address = waiting.pop()
        manifest = None if f"{kind}/{address}" in found else read_manifest(store, kind, address)
        if manifest is not None:
            found[f"{kind}/{address}"] = manifest
            waiting += [(ref.kind, ref.address) for ref in manifest.inputs.values()]
            waiting += [(kind, manifest.spec[field]) for field in through if manifest.spec.get(field)]
    return found


def new_attempt() -> str:
    """Return a name that no other attempt has."""
    return f"attempt-{secrets.token_hex(6)}"

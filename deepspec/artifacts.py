"""Artifacts: what a stage publishes, how it is addressed before it exists, and how it is opened again.

    <root>/<kind>/<address>/manifest.json                   the commit mark, written last
    <root>/<kind>/<address>/<attempt>/<name>                the files it names
    <root>/<kind>/<address>/parts/<inputs>/<part>.json      commit marks of parts, for stages made of shards

The *address* is known before the run: a hash of kind, stage version, the spec fields that differ from the default
they were introduced with, and the addresses of the inputs. The *content* is a hash of the payload's checksums: a
consumer records the content of each input and is stale when it no longer matches. See docs/formats/artifacts.md.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Self, TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer
from pydantic.fields import FieldInfo

from deepspec.errors import CorruptArtifactError, NotPublishedError
from deepspec.store import Store

MANIFEST = "manifest.json"

NOT_ADDRESSED: dict[str, JsonValue] = {"addressed": False}
"""`json_schema_extra` of a spec's field that decides whether and when there is a result, never which: it stays out of
the address."""

_COMPUTED = object()


class Spec(BaseModel):
    """What changes the result of a stage. Frozen; unknown fields are refused.

    A field whose default changed after its introduction carries the old one as
    `json_schema_extra={"introduced_with": …}`, so that the addresses of old results stay right.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def but(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed."""
        return type(self).model_validate({**self.model_dump(), **changes})

    @property
    def engine_tokens(self) -> int:
        """Return how many tokens an engine is asked for, an answer; 0: the stage asks none."""
        return 0

    @property
    def engine_slots(self) -> int:
        """Return how many requests an engine should take at once, where the stage asks one."""
        return 1

    def identity(self) -> dict[str, Any]:
        """Return the fields that differ from the default they were introduced with, as JSON values."""
        return {name: _identity(getattr(self, name)) for name in self._told()}

    def _told(self) -> Iterable[str]:
        for name, field in type(self).model_fields.items():
            if not field.exclude and _addressed(field) and getattr(self, name) != _introduced_with(field):
                yield name


class TargetId(Spec):
    """Which target model, exactly: hashes, so that no path enters an address."""

    config: str
    """Hash of the model's config."""
    weights: str
    """Hash of the weight files, or the revision of a hub id."""
    tokenizer: str
    """Hash of the tokenizer files."""
    template: str
    """Hash of the chat template."""
    proof: str = ""
    """The proof that a reading by the general rule has to pass wherever this target is loaded (families/general.py);
    empty where the target is of a family that is known."""

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told: dict[str, Any] = serialize(self)
        return told if told.get("proof") else {name: value for name, value in told.items() if name != "proof"}

    @property
    def digest(self) -> str:
        """Return one short name for all of it."""
        return _digest(self.identity())[:16]


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


class FileEntry(BaseModel):
    """One published file: where its bytes are and what they must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Key below the artifact's prefix."""
    size: int
    checksum: str
    """`xxh3:` and the 128-bit hash of the bytes, in hex."""


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


def address_of(kind: str, version: int, spec: Spec, inputs: Mapping[str, str]) -> str:
    """Return the address that a stage's result will have.

    Args:
        kind: the artifact kind.
        version: the stage's version, raised when its output changes for the same spec.
        spec: what changes the result.
        inputs: name -> address of each input.
    """
    told = {"kind": kind, "version": version, "spec": spec.identity(), "inputs": dict(inputs)}
    return _digest(told)[:32]


def content_of(files: Mapping[str, FileEntry]) -> str:
    """Return the hash over the sorted payload checksums."""
    return _digest(sorted((name, entry.checksum) for name, entry in files.items()))[:32]


def inputs_digest(inputs: Mapping[str, ArtifactRef]) -> str:
    """Return a short hash of the contents of the inputs: parts made from other contents are another set."""
    return _digest({name: ref.content for name, ref in inputs.items()})[:12]


def checksum(path: Path) -> str:
    """Return `xxh3:` and the 128-bit XXH3 hash of a file, read in chunks."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return f"xxh3:{digest.hexdigest()}"


def is_sound(path: Path, entry: FileEntry) -> bool:
    """Return whether a local file has the size and the checksum of its entry."""
    try:
        verify_file(path, entry, path.name)
    except CorruptArtifactError:
        return False
    return True


def verify_file(path: Path, entry: FileEntry, name: str) -> None:
    """Check a local file against its entry.

    Raises:
        CorruptArtifactError: it is missing, or size or checksum differ.
    """
    advice = "delete the artifact (deepspec gc --artifact) and run again to rebuild it"
    if not path.is_file():
        raise CorruptArtifactError(f"{name}: {path} is gone; {advice}")
    size = path.stat().st_size
    if size != entry.size:
        raise CorruptArtifactError(f"{name}: {path} has {size} bytes, its manifest says {entry.size}; {advice}")
    found = checksum(path)
    if found != entry.checksum:
        raise CorruptArtifactError(f"{name}: {path} has checksum {found}, its manifest says {entry.checksum}; {advice}")


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
    return json.dumps({**told, "sha256": _digest(told)}, indent=1).encode()


def _unsealed(kind: type[_Mark], data: bytes) -> _Mark:
    """Return the mark that these bytes are, checked against their seal; ValueError where they are not one."""
    told = json.loads(data)
    if not isinstance(told, dict) or told.pop("sha256", None) != _digest(told):
        raise ValueError("its sha256 does not match its content")
    return kind.model_validate(told)


def _check_files(files: Mapping[str, FileEntry], where: str) -> None:
    for name, entry in files.items():
        for step in (name, *entry.key.split("/")):
            check_name(step, where)


def check_name(name: str, where: str) -> None:
    """Refuse file names that could leave their folder.

    Raises:
        CorruptArtifactError: the name is empty, dotted, or holds a separator.
    """
    if name in {"", ".", ".."} or any(sign in name for sign in "/\\\0"):
        raise CorruptArtifactError(f"{where} names the file {name!r}; only plain names are accepted")


def open_artifact(store: Store, ref: ArtifactRef, scratch: Path) -> Artifact:
    """Open a published artifact.

    Raises:
        NotPublishedError: it has no commit mark.
    """
    manifest = read_manifest(store, ref.kind, ref.address)
    if manifest is None:
        raise NotPublishedError(f"{store.uri(ref.prefix)} is not published; run the stage that makes it")
    return Artifact(store, manifest, scratch)


def new_attempt() -> str:
    """Return a name that no other attempt has."""
    return f"attempt-{secrets.token_hex(6)}"


def canonical_json(value: Any) -> bytes:
    """Return the one JSON form that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _addressed(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return not isinstance(extra, dict) or bool(extra.get("addressed", True))


def _introduced_with(field: FieldInfo) -> Any:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "introduced_with" in extra:
        return extra["introduced_with"]
    if field.default_factory is not None:  # computed where it is read: always told
        return _COMPUTED
    return field.default


def _identity(value: Any) -> Any:
    """Return a spec value as JSON: nested specs by their own identity."""
    if isinstance(value, Spec):
        return value.identity()
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value

"""What a store holds for nobody: left behind by attempts that died, or made for no named ref.

Found first and deleted second, so that people see it in between. Only what is older than they say counts: what is
younger may belong to a run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deepspec.artifacts import MANIFEST, Manifest, inputs_digest, lineage, read_manifest, read_mark
from deepspec.catalog import addresses, refs
from deepspec.errors import SpecError
from deepspec.publish import drop_artifact
from deepspec.store import Store
from deepspec.store.entries import StoreEntry, Upload

EARLIER = ("continue_from", "warm_start")
"""Fields of a spec that name an earlier artifact of the same kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """What can be deleted."""

    artifacts: tuple[tuple[str, str], ...] = ()
    """(kind, address) of whole artifacts."""
    keys: Mapping[str, int]
    """Key -> bytes, of single files; those of whole artifacts are not among them."""
    uploads: tuple[Upload, ...] = ()
    """Multipart uploads that were never finished."""


def find_garbage(store: Store, before: float, *, unreferenced: bool = False) -> Garbage:
    """Return what is older than a moment and serves nobody.

    Args:
        store: where to look.
        before: seconds since 1970; what was written later is kept.
        unreferenced: whether artifacts that no named ref was made from count.

    Raises:
        SpecError: unreferenced ones are asked for and there is no ref: that would be everything.
    """
    whole = _unreferenced(store, before) if unreferenced else []
    keys: dict[str, int] = {}
    for kind, address in addresses(store):
        if (kind, address) not in whole:
            entries = store.entries(f"{kind}/{address}")
            keys |= _old(_dead_keys(store, kind, address), entries, before)
    living = {address for pair in addresses(store) if pair not in whole for address in pair[1:]}
    logs = store.entries("logs")
    keys |= _old((key for key in logs if not any(part in living for part in key.split("-"))), logs, before)
    uploads = tuple(upload for upload in store.unfinished_uploads() if upload.started < before)
    return Garbage(artifacts=tuple(whole), keys=keys, uploads=uploads)


def delete_garbage(store: Store, found: Garbage) -> None:
    """Delete what was found; artifacts lose their commit mark first."""
    for kind, address in found.artifacts:
        drop_artifact(store, kind, address)
    for key in found.keys:
        store.delete(key)
    for upload in found.uploads:
        store.abort_upload(upload)


def _dead_keys(store: Store, kind: str, address: str) -> list[str]:
    """Return the keys of an artifact that serve nobody: neither its manifest nor a part's mark names them.

    Kept are also the marks of the parts that the manifest was made from, by which a damaged part is made again alone;
    and, until there is a manifest, what the next attempt goes on from.
    """
    prefix = f"{kind}/{address}"
    keys = store.list(prefix)
    manifest = read_manifest(store, kind, address)
    if manifest is None:
        marks = [key for key in keys if key.startswith(f"{prefix}/parts/") and key.endswith(".json")]
        living = {f"{prefix}/{entry.key}" for key in marks for entry in read_mark(store, key).files.values()}
        kept = tuple(f"{prefix}/{folder}/" for folder in ("parts", "claims", "checkpoints"))
    else:
        living = {f"{prefix}/{MANIFEST}", *(f"{prefix}/{entry.key}" for entry in manifest.files.values())}
        kept = (f"{prefix}/{_own_marks(manifest)}/",)
    return [key for key in keys if key not in living and not key.startswith(kept)]


def _own_marks(manifest: Manifest) -> str:
    return f"parts/{inputs_digest(manifest.inputs)}"


def _unreferenced(store: Store, before: float) -> list[tuple[str, str]]:
    named = refs(store)
    if not named:
        raise SpecError(
            f"{store.root} has no named refs, so no artifact is referenced and all would go; "
            "name what to keep first: deepspec ref NAME ARTIFACT"
        )
    needed = lineage(store, named.values(), through=EARLIER)
    candidates = [pair for pair in addresses(store) if "/".join(pair) not in needed]
    return [pair for pair in candidates if _newest(store.entries("/".join(pair))) < before]


def _newest(entries: Mapping[str, StoreEntry]) -> float:
    return max((entry.modified for entry in entries.values()), default=0.0)


def _old(keys: Iterable[str], entries: Mapping[str, StoreEntry], before: float) -> dict[str, int]:
    return {key: entries[key].size for key in keys if key in entries and entries[key].modified < before}

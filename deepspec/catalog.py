"""What lies in a store: published, partial and stale artifacts, named references and what they were made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deepspec.artifacts import ArtifactRef, Manifest, read_manifest, read_mark, reference
from deepspec.errors import CorruptArtifactError, NotPublishedError, SpecError
from deepspec.publish import is_complete
from deepspec.specs import Spec
from deepspec.stages import PRODUCTS, STAGES, address, stage_named
from deepspec.store import Store

State = Literal["published", "incomplete", "partial", "stale"]
ROW_STATUSES = ("success", "error", "skipped")
"""What can become of a row of answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One address that has something in the store."""

    kind: str
    address: str
    state: State
    note: str
    bytes: int
    manifest: Manifest | None


def catalog(store: Store) -> list[Entry]:
    """Return everything under the root, in the order of the stages.

    `published`: committed, complete, and made from its inputs' present contents. `stale`: an input changed since.
    `incomplete`: committed, but files are gone. `partial`: no commit mark yet.
    """
    entries = [_entry(store, kind, address) for kind, address in addresses(store)]
    order = [stage.kind for stage in STAGES.values()]
    return sorted(entries, key=lambda entry: (order.index(entry.kind), entry.address))


def addresses(store: Store) -> list[tuple[str, str]]:
    """Return (kind, address) of everything under the root, complete or not."""
    kinds = {stage.kind for stage in STAGES.values()}
    steps = (key.split("/") for kind in sorted(kinds) for key in store.list(kind))
    return sorted({(step[0], step[1]) for step in steps if len(step) > 2})


def held_bytes(store: Store, specs: Mapping[str, Spec]) -> int:
    """Return the bytes that a store holds already of a run's artifacts, published or in part.

    Args:
        store: where.
        specs: name of what it makes -> its spec.
    """
    found, where = 0, dict[str, str]()
    for name, product in PRODUCTS.items():
        stage = stage_named(product.stage)
        given = {each: where[made] for each, made in product.inputs.items() if made in where}
        if name in specs and all(kind in given for kind in stage.inputs):
            where[name] = address(stage, specs[name], given)
            found += sum(store.sizes(f"{stage.kind}/{where[name]}").values())
    return found


def set_ref(store: Store, name: str, ref: ArtifactRef) -> None:
    """Let a name point at an artifact; what it pointed at before becomes `previous` where the name is `baseline`."""
    key = _ref_key(name)
    if name == "baseline" and store.exists(key):
        store.write_bytes(_ref_key("previous"), store.read_bytes(key))
    store.write_bytes(key, ref.model_dump_json(indent=1).encode())


def refs(store: Store) -> dict[str, ArtifactRef]:
    """Return all named references.

    Raises:
        CorruptArtifactError: one cannot be read.
    """
    keys = [key for key in store.list("refs") if key.endswith(".json")]
    return {key.removeprefix("refs/").removesuffix(".json"): _read_ref(store, key) for key in keys}


def _read_ref(store: Store, key: str) -> ArtifactRef:
    try:
        return ArtifactRef.model_validate_json(store.read_bytes(key))
    except ValueError as error:
        problem = str(error).splitlines()[0]
        raise CorruptArtifactError(
            f"{store.uri(key)} is not a reference: {problem}; set it anew: deepspec ref NAME ARTIFACT, or delete it"
        ) from error


def scores_before(store: Store, target: str) -> str | None:
    """Return the address of the scores of the release that `baseline` names, where it is one for this target."""
    ref = refs(store).get("baseline")
    manifest = read_manifest(store, "release", ref.address) if ref is not None and ref.kind == "release" else None
    if manifest is None or manifest.spec["target"] != target:
        return None
    return manifest.inputs["scores"].address


def find(store: Store, name: str) -> ArtifactRef:
    """Return the artifact that a named ref, `kind/address`, or an unambiguous start of an address names.

    Raises:
        NotPublishedError: nothing published has that name.
        SpecError: several have.
    """
    named = refs(store)
    if name in named:
        return named[name]
    kind, _, start = name.rpartition("/")
    found = [pair for pair in addresses(store) if start and pair[1].startswith(start) and kind in ("", pair[0])]
    if len(found) > 1:
        raise SpecError(f"{name!r} may be {', '.join('/'.join(pair) for pair in found)}; give more of it")
    manifest = read_manifest(store, *found[0]) if found else None
    if manifest is None:
        raise NotPublishedError(f"nothing published in {store.root} is called {name!r}; see: deepspec status")
    return reference(store, manifest)


def find_kind(store: Store, name: str, kind: str) -> ArtifactRef:
    """Return the artifact of a kind that a named ref, `kind/address`, or the start of an address names.

    Raises:
        NotPublishedError: nothing published has that name.
        SpecError: several have, or it is of another kind.
    """
    ref = find(store, name if "/" in name or name in refs(store) else f"{kind}/{name}")
    if ref.kind != kind:
        raise SpecError(f"{name} is of kind {ref.kind}; wanted {kind}, see: deepspec status")
    return ref


def _entry(store: Store, kind: str, address: str) -> Entry:
    manifest = read_manifest(store, kind, address)
    stored = sum(store.sizes(f"{kind}/{address}").values())
    state, note = _state(store, manifest, f"{kind}/{address}")
    return Entry(kind=kind, address=address, state=state, note=note, bytes=stored, manifest=manifest)


def _state(store: Store, manifest: Manifest | None, prefix: str) -> tuple[State, str]:
    if manifest is None:
        parts = [key for key in store.list(f"{prefix}/parts") if key.endswith(".json")]
        rows = _rows(store, parts) if prefix.startswith("answers/") else ""
        return "partial", f"{len(parts)} parts committed{rows}; run again to go on"
    if not is_complete(store, manifest):
        return "incomplete", "files are gone; run again to rebuild"
    if manifest.kind == "answers" and not _accounted(manifest.counts):
        return "incomplete", "success + error + skipped is not input; delete it (deepspec gc --artifact) and run again"
    for name, ref in manifest.inputs.items():
        present = read_manifest(store, ref.kind, ref.address)
        if present is not None and present.content != ref.content:
            return "stale", f"made from another content of {name}; run again to rebuild"
    return "published", ""


def _accounted(counts: Mapping[str, Any]) -> bool:
    """Return whether every row of some answers has a status; answers that count no rows have none to miss."""
    return bool(sum(counts.get(status, 0) for status in ROW_STATUSES) == counts.get("input", 0))


def _rows(store: Store, marks: list[str]) -> str:
    """Return what became of the rows in the committed parts of some answers."""
    told = [counts for counts in (read_mark(store, key).counts for key in marks) if _accounted(counts)]
    sums = " + ".join(f"{sum(counts[status] for counts in told)} {status}" for status in ROW_STATUSES)
    wrong = f", {len(marks) - len(told)} parts whose rows do not add up" if len(told) < len(marks) else ""
    return f": {sums} = {sum(counts['input'] for counts in told)} rows{wrong}"


def _ref_key(name: str) -> str:
    if not name or not all(sign.isalnum() or sign in "-_." for sign in name) or name.startswith("."):
        raise SpecError(f"{name!r} is no name for a ref; use letters, digits, '-', '_' and '.'")
    return f"refs/{name}.json"

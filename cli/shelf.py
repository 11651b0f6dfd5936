"""Commands about what a store holds: status, ref, gc."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli.check import AsJson
from deepspec.catalog import Entry, catalog, find, refs, set_ref
from deepspec.garbage import Garbage, delete_garbage, find_garbage
from deepspec.overview.words import held
from deepspec.plan.cost.table import size
from deepspec.store import Store
from infra.settings import named_root
from infra.terminal import Piece, Styled, say, show_json, show_table, show_words

app = typer.Typer()

Root = Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

COLUMNS = ("kind", "address", "state", "size", "made")
_STYLE = {"published": "green", "partial": "yellow", "stale": "magenta", "incomplete": "red"}


@app.command()
def status(root: Root = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """List what is published, partial, stale or incomplete, and the named refs."""
    del debug
    store = Store(named_root(root))
    entries, named = catalog(store), refs(store)
    if as_json:
        found = {name: ref.prefix for name, ref in named.items()}
        show_json({"store": store.root, "artifacts": [_told(entry) for entry in entries], "refs": found})
        return
    show_table(f"store {store.root}", [_row(entry) for entry in entries], COLUMNS)
    for entry in entries:
        words = [entry.note] if entry.note else []
        words += [held(entry.manifest)] if entry.manifest else []
        show_words(f"{entry.kind} {entry.address[:12]}", "; ".join(words))
    for name, ref in named.items():
        say("ref ", Styled(name, "bold"), f" → {ref.prefix}")


@app.command("ref")
def set_reference(name: str, artifact: str, root: Root = None, debug: Debug = False) -> None:
    """Let NAME (baseline, say) point at ARTIFACT: a ref, kind/address, or the start of an address."""
    del debug
    store = Store(named_root(root))
    ref = find(store, artifact)
    set_ref(store, name, ref)
    say("ref ", Styled(name, "bold"), f" → {ref.prefix}")


@app.command()
def gc(
    artifact: Annotated[str | None, typer.Option(help="Delete this artifact, whatever refers to it.")] = None,
    unreferenced: Annotated[bool, typer.Option(help="Also delete artifacts that no ref's lineage needs.")] = False,
    older_than: Annotated[float, typer.Option(help="Hours; what was written later is kept.", min=0)] = 24.0,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it the list is only shown.")] = False,
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Delete what killed attempts left behind, unfinished uploads too. Shows only, unless --yes."""
    del debug
    store = Store(named_root(root))
    if artifact is None:
        found = find_garbage(store, time.time() - older_than * 3600, unreferenced=unreferenced)
    else:
        ref = find(store, artifact)
        found = Garbage(artifacts=((ref.kind, ref.address),), keys={})
    for line in _garbage_lines(store, found):
        say(line)
    if yes:
        delete_garbage(store, found)
    numbers = f"{len(found.artifacts)} artifacts, {len(found.keys)} files and {len(found.uploads)} unfinished uploads"
    say(f"deleted {numbers}" if yes else f"{numbers} would be deleted; add --yes to do it")


def _garbage_lines(store: Store, found: Garbage) -> Iterator[str]:
    for pair in found.artifacts:
        yield f"artifact {'/'.join(pair)}: {size(sum(store.sizes('/'.join(pair)).values()))}"
    for key, stored in found.keys.items():
        yield f"left behind {key}: {size(stored)}"
    for upload in found.uploads:
        yield f"unfinished upload of {upload.key}"


def _row(entry: Entry) -> dict[str, Piece]:
    state = Styled(entry.state, _STYLE[entry.state])
    made = _made(entry)[:16].replace("T", " ")  # to the minute
    return dict(zip(COLUMNS, (entry.kind, entry.address[:12], state, size(entry.bytes), made), strict=True))


def _told(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "address": entry.address,
        "state": entry.state,
        "note": entry.note,
        "bytes": entry.bytes,
        "finished": _made(entry) or None,
        "counts": entry.manifest.counts if entry.manifest else None,
    }


def _made(entry: Entry) -> str:
    return str(entry.manifest.provenance.get("finished", "")) if entry.manifest else ""

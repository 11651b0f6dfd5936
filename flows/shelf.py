"""Commands about what a store holds: status, ref, gc."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepspec.catalog import Entry, addresses, catalog, dead_keys, find, lineage, refs, set_ref
from deepspec.plan.estimate import size
from deepspec.publish import drop_artifact
from deepspec.store import Store
from infra.settings import default_root

app = typer.Typer()
console = Console()

Root = Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

_STYLE = {"published": "green", "partial": "yellow", "stale": "magenta", "incomplete": "red"}


@app.command()
def status(root: Root = None, debug: Debug = False) -> None:
    """List what is published, partial, stale or incomplete, and the named refs."""
    del debug
    store = Store(root or default_root())
    table = Table(title=f"store {store.root}", title_justify="left")
    for column in ("kind", "address", "state", "size", "made", "counts", "note"):
        table.add_column(column, overflow="fold")
    for entry in catalog(store):
        table.add_row(*_cells(entry))
    console.print(table)
    for name, ref in refs(store).items():
        console.print(f"ref [bold]{name}[/] → {ref.prefix}", highlight=False)


@app.command("ref")
def set_reference(name: str, artifact: str, root: Root = None, debug: Debug = False) -> None:
    """Let NAME (baseline, say) point at ARTIFACT: a ref, kind/address, or the start of an address."""
    del debug
    store = Store(root or default_root())
    ref = find(store, artifact)
    set_ref(store, name, ref)
    console.print(f"ref [bold]{name}[/] → {ref.prefix}", highlight=False)


@app.command()
def gc(
    artifact: Annotated[str | None, typer.Option(help="Delete this artifact, whatever refers to it.")] = None,
    unreferenced: Annotated[bool, typer.Option(help="Also delete artifacts that no ref's lineage needs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it the list is only shown.")] = False,
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Delete what killed attempts left behind. Shows only, unless --yes; run it when nothing else is running."""
    del debug
    store = Store(root or default_root())
    whole = _whole(store, artifact, unreferenced)
    dead = (
        [] if artifact else [key for pair in addresses(store) if pair not in whole for key in dead_keys(store, *pair)]
    )
    for pair in whole:
        console.print(f"artifact {'/'.join(pair)}: {size(sum(store.sizes('/'.join(pair)).values()))}", highlight=False)
    for key in dead:
        console.print(f"left behind {key}", highlight=False)
    if not yes:
        console.print(f"{len(whole)} artifacts and {len(dead)} files would be deleted; add --yes to do it")
        return
    for pair in whole:
        drop_artifact(store, *pair)
    for key in dead:
        store.delete(key)
    console.print(f"deleted {len(whole)} artifacts and {len(dead)} files")


def _whole(store: Store, artifact: str | None, unreferenced: bool) -> list[tuple[str, str]]:
    if artifact:
        ref = find(store, artifact)
        return [(ref.kind, ref.address)]
    if not unreferenced:
        return []
    needed = lineage(store, refs(store).values())
    return [pair for pair in addresses(store) if "/".join(pair) not in needed]


def _cells(entry: Entry) -> tuple[str, ...]:
    made = entry.manifest.provenance.get("finished", "") if entry.manifest else ""
    counts = entry.manifest.counts if entry.manifest else {}
    shown = ", ".join(f"{key} {value}" for key, value in counts.items() if isinstance(value, int | float))
    state = f"[{_STYLE[entry.state]}]{entry.state}[/]"
    return (entry.kind, entry.address[:12], state, size(entry.bytes), str(made), shown[:200], entry.note)

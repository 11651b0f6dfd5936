"""Commands about a published target cache, below `deepspec cache`: verify, stat, import."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepspec.plan import presets
from deepspec.plan.plan import TargetPlan
from deepspec.store import Store
from flows.check import Debug, Root, TargetFolder, opened, placement_of
from infra.listeners import Listeners, attached, rich_table, terminal
from infra.settings import default_root, scratch_dir
from infra.targets import ready_target

app = typer.Typer()
console = Console()

Cache = Annotated[str, typer.Argument(help="The cache: a ref, kind/address, or the start of an address.")]


@app.command()
def verify(
    cache: Cache,
    recompute: Annotated[int, typer.Option(help="Samples to compute again with the target.", min=0)] = 4,
    repair: Annotated[bool, typer.Option(help="Delete damaged files, so that the stage makes them again.")] = False,
    target: TargetFolder = None,
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Check every sample against its checksum, and a few against the target itself."""
    del debug
    from deepspec.cache.verify import drop_damaged  # loads torch
    from deepspec.cache.verify import verify as verified

    artifact = opened(cache, root, "target_cache")
    with attached(console):
        placement = placement_of(artifact, target, needed=recompute > 0)
        found = verified(artifact, placement, Listeners(terminal("verify")), recompute)
    for problem in found.damaged:
        console.print(problem, highlight=False, soft_wrap=True)
    for sample in found.wrong:
        console.print(f"sample {sample} is off by {found.recomputed[sample]:.2g} of its norm", highlight=False)
    told = f"{found.samples} samples read, {len(found.recomputed)} computed again"
    console.print(
        f"{artifact.prefix}: {'sound' if found.sound else 'NOT sound'}; {told}", highlight=False, soft_wrap=True
    )
    if repair and found.files:
        drop_damaged(artifact, found)
        console.print(f"deleted {len(found.files)} damaged files; the stage that made the cache makes only them again")
    raise typer.Exit(0 if found.sound else 1)


@app.command()
def stat(cache: Cache, root: Root = None, debug: Debug = False) -> None:
    """Show what a target cache holds: samples, lengths, bytes, and what each rule saved."""
    del debug
    from deepspec.cache.totals import savings, statistics  # loads torch
    from deepspec.formats.target_cache import INDEX, Index

    artifact = opened(cache, root, "target_cache")
    rows: list[dict[str, Any]] = statistics(artifact, Index(artifact.path(INDEX)).lengths.tolist())
    console.print(rich_table(artifact.prefix, rows))
    console.print(rich_table("bytes after each saving", savings(artifact.counts)))


@app.command("import")
def import_cache(
    folder: Annotated[Path, typer.Argument(help="A cache in the public DeepSpec form, version 2.")],
    target: Annotated[str, typer.Option(help="Whose states they are: preset, hub id, folder or own YAML file.")],
    codec: Annotated[str, typer.Option(help="bf16, bf16-zstd or fp8.")] = "bf16-zstd",
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Publish a public cache in this project's form; an interrupted import goes on."""
    del debug
    source = TargetPlan.model_validate(presets.target(target)["target"])
    files = ready_target(source, source.name)
    from deepspec.cache.public import import_folder  # loads torch

    with attached(console):
        report = Listeners(terminal("import"))
        ref = import_folder(folder, files.folder, codec, Store(root or default_root()), scratch_dir(), report)
    console.print(f"published {ref.uri}", highlight=False, soft_wrap=True)

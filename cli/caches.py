"""Commands about a published target cache, below `deepspec cache`: verify, stat, import."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.brought import made_of
from cli.check import Debug, Root, TargetFolder
from cli.published import opened, placement_of
from deepspec.plan import presets
from deepspec.plan.plan import TargetPlan
from deepspec.store import Store
from infra.children.targets import ready_target
from infra.listeners import Listeners, attached, terminal
from infra.settings import named_root
from infra.terminal import say, show_table

app = typer.Typer()

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
    artifact = opened(cache, root, "target_cache")
    placement = placement_of(artifact, target, needed=recompute > 0)
    from deepspec.cache.verify import drop_damaged, verify_cache  # loads torch: not before what is named was found

    with attached():
        found = verify_cache(artifact, placement, Listeners(terminal("verify")), recompute)
    for problem in found.damaged:
        say(problem)
    for sample in found.wrong:
        say(f"sample {sample} is off by {found.recomputed[sample]:.2g} of its norm")
    told = f"{found.samples} samples read, {len(found.recomputed)} computed again"
    say(f"{artifact.prefix}: {'sound' if found.sound else 'NOT sound'}; {told}")
    if repair and found.files:
        drop_damaged(artifact, found)
        say(f"deleted {len(found.files)} damaged files; the stage that made the cache makes only them again")
    raise typer.Exit(0 if found.sound else 1)


@app.command()
def stat(cache: Cache, root: Root = None, debug: Debug = False) -> None:
    """Show what a target cache holds: samples, lengths, bytes, and what each rule saved."""
    del debug
    artifact = opened(cache, root, "target_cache")
    from deepspec.target_cache.index import INDEX, Index
    from deepspec.target_cache.totals import savings, statistics  # loads torch: not before what is named was found

    rows: list[dict[str, Any]] = statistics(artifact, Index(artifact.path(INDEX)).lengths.tolist())
    show_table(artifact.prefix, rows)
    show_table("bytes after each saving", savings(artifact.counts))


@app.command("import")
def import_cache(
    folder: Annotated[Path, typer.Argument(help="A cache in the public DeepSpec form, version 2.")],
    target: Annotated[str, typer.Option(help="Whose states they are: preset, hub id, folder or own YAML file.")],
    codec: Annotated[str, typer.Option(help="bf16, bf16-zstd or fp8.")] = "bf16-zstd",
    bad_share: Annotated[
        float, typer.Option(help="Share of the samples that may supervise too little; they are left out.", min=0, max=1)
    ] = 0.05,
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Publish a public cache in this project's form; an interrupted import goes on."""
    del debug
    source = presets.validated(TargetPlan, presets.target(target).get("target", {}), f"--target {target}")
    files = ready_target(source, source.name)
    from deepspec.brought.cache import import_spec  # loads torch

    spec = import_spec(folder, files.folder, {"codec": codec, "bad_share": bad_share})
    places = {spec.source: folder, spec.target.digest: files.folder}
    ref = made_of("import", spec, places, Store(named_root(root)))
    say(f"published {ref.uri}")

"""Commands that check what is published: compare scores, hold a draft's forms together."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deepspec.artifacts import Artifact, TargetId, open_artifact
from deepspec.catalog import find_kind
from deepspec.errors import SpecError
from deepspec.placement import Placement
from deepspec.store import Store
from infra.settings import default_root, parts_limit, scratch_dir
from infra.terminal import Styled, say, show_table

app = typer.Typer()

Root = Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")]
TargetFolder = Annotated[Path | None, typer.Option(help="Folder of the target; default: the one that runs have used.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def compare(first: str, second: str, root: Root = None, debug: Debug = False) -> None:
    """Say whether the SECOND scores are better than the FIRST, on the questions that both were asked."""
    del debug
    from deepspec.decoding.compare import compare as compared  # loads scipy and pyarrow

    rows = [found.row() for found in compared(opened(first, root, "scores"), opened(second, root, "scores"))]
    show_table("accepted length with bonus", rows)


@app.command()
def parity(
    draft: Annotated[str, typer.Argument(help="A published draft, a checkpoint's folder, or a hub id ORG/MODEL.")],
    text: Annotated[
        str | None, typer.Argument(help="Compared on this; default: a sample of the draft's cache.")
    ] = None,
    target: TargetFolder = None,
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Hold all forms of a DRAFT together: states cached and fresh, logits as trained, as decoded, as exported."""
    del debug
    from deepspec.checkpoint.ends import ends_apart, warning
    from flows import forms  # loads torch

    gathered = forms.gather(draft, target, root)
    found = gathered.check(text)
    show_table(f"{draft}: {'pass' if found.passed else 'FAIL'}", found.rows())
    loud = warning(ends_apart(gathered.folder, gathered.target))
    if loud is not None:
        say(Styled("warning:", "bold red"), f" {loud}")
    raise typer.Exit(0 if found.passed else 1)


def opened(name: str, root: str | None, kind: str) -> Artifact:
    """Return a published artifact of a kind by what the user calls it."""
    store = Store(root or default_root())
    return open_artifact(store, find_kind(store, name, kind), scratch_dir())


def placement_of(artifact: Artifact, target: Path | None, needed: bool = True) -> Placement:
    """Return a placement that knows where the artifact's target lies, where that is needed."""
    digest = TargetId.model_validate(artifact.counts["target"]).digest
    locations = {digest: str(target_folder(artifact, target))} if needed else {}
    return Placement(scratch=scratch_dir(), parts_limit=parts_limit(), locations=locations)


def target_folder(artifact: Artifact, target: Path | None) -> Path:
    """Return the target's folder: the one given, or the one that the last run at this place noted."""
    if target is not None:
        return target
    digest = TargetId.model_validate(artifact.counts["target"]).digest
    noted = scratch_dir() / "targets" / digest
    if not noted.is_file():
        raise SpecError(
            f"{artifact.prefix} was made with target {digest}, which is not known here; give --target FOLDER"
        )
    return Path(json.loads(noted.read_text()))

"""The command `deepspec report`: the page of any artifact, or several drafts on one."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from deepspec.artifacts import open_artifact
from deepspec.catalog import find
from deepspec.overview.page import html_of, pictures
from deepspec.store import Store
from infra.settings import named_root, scratch_dir
from infra.terminal import say

app = typer.Typer()


@app.command()
def report(
    names: Annotated[
        list[str], typer.Argument(help="A ref, kind/address, or a start of it; several drafts come side by side.")
    ],
    out: Annotated[Path | None, typer.Option(help="File to write, .html; default: below the scratch folder.")] = None,
    pictures_to: Annotated[
        Path | None, typer.Option("--pictures", help="Also lay the artifact's pictures out in this folder.")
    ] = None,
    opened: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    root: Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write the page of any artifact, pictures in it: a draft, scores, speed, a cache, answers, a release."""
    del debug
    store, scratch = Store(named_root(root)), scratch_dir()
    if len(names) > 1:
        from deepspec.overview.drafts import find_drafts, side_by_side  # loads scipy and matplotlib

        page = side_by_side(find_drafts(store, names, scratch))
        text, drawn, file = page.html(), page.figures(), "drafts.html"
    else:
        artifact = open_artifact(store, find(store, names[0]), scratch)
        text, drawn = html_of(artifact), pictures(artifact)
        file = f"{artifact.manifest.kind}-{artifact.manifest.address[:12]}.html"
    path = out or scratch / "reports" / file
    files = {path: text.encode()}
    if pictures_to is not None:
        files |= {pictures_to / f"{name}.png": png for name, png in drawn.items()}
    for place, data in files.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        say(str(place))
    if opened:
        webbrowser.open(path.resolve().as_uri())

"""Commands that check what is published: compare scores, hold a draft's forms together."""

from pathlib import Path
from typing import Annotated

import typer

from cli.published import named_draft, opened
from infra.terminal import Styled, say, show_json, show_table

app = typer.Typer()

Root = Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")]
TargetFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of the target; default: the one that runs have used."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
HIGHEST_PORT = 65535
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs; see docs/scripts.md.")]


@app.command()
def compare(first: str, second: str, root: Root = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Say whether the SECOND scores are better than the FIRST, on the questions that both were asked."""
    del debug
    from deepspec.decoding.compare import compare_drafts  # loads scipy and pyarrow

    found = compare_drafts(opened(first, root, "scores"), opened(second, root, "scores"))
    if as_json:
        show_json({"differences": [{**each.model_dump(mode="json"), "verdict": each.verdict} for each in found]})
        return
    show_table("accepted length with bonus", [each.row() for each in found])


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
    found_draft, target_folder = named_draft(draft, target, root)
    from cli import forms  # loads torch: not before what is named was found
    from deepspec.checkpoint.ends import ends_apart, warning

    gathered = forms.gather(found_draft, target_folder)
    found = gathered.check(text)
    show_table(f"{draft}: {'pass' if found.passed else 'FAIL'}", found.rows())
    loud = warning(ends_apart(gathered.folder, gathered.target))
    if loud is not None:
        say(Styled("warning:", "bold red"), f" {loud}")
    raise typer.Exit(0 if found.passed else 1)

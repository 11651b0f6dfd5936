"""The command `deepspec reevaluate`: a released draft against its target as it is now."""

from datetime import datetime
from typing import Annotated

import typer

from cli import show
from deepspec.artifacts import open_artifact
from deepspec.catalog import find
from deepspec.errors import SpecError
from deepspec.evaluate.again import scores_of
from deepspec.formats.scores import SCORES, Scores, read_scores
from deepspec.store import Store
from flows.choices import Choices, choose_site
from infra.listeners import attached
from infra.terminal import Styled, say, show_table

app = typer.Typer()


@app.command()
def reevaluate(
    release: Annotated[str, typer.Argument(help="Release or scores: a ref, kind/address, or a start of it.")],
    target: Annotated[str, typer.Option(help="Preset, hub id, folder, or YAML file; resolved anew.")] = "smollm2-135m",
    benchmarks_dir: Annotated[str | None, typer.Option(help="Where the release's benchmark files lie.")] = None,
    as_of: Annotated[
        str | None, typer.Option(help="ISO 8601; default: now. The same moment is not done twice.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Store: a folder or s3://bucket/prefix.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads.", min=1)] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Evaluate a release again against the target as it is now; exit code 1 where the draft has become worse."""
    del debug
    moment = _moment(as_of)
    choices = Choices(target=target, benchmarks_dir=benchmarks_dir)
    site = choose_site(root, device=device, threads=threads)
    site = show.check_input(choices.plan, site, "reevaluate")
    scores_of(Store(site.root), find(Store(site.root), release))  # a name that leads nowhere is told at once
    from flows.reevaluate import reevaluate as run  # Prefect takes a second to import
    from infra.server.api import prefect_api

    with attached(), prefect_api(say):
        step = run(choices, site, release, moment)
    raise typer.Exit(_tell(read_scores(open_artifact(Store(site.root), step.ref, site.placement.scratch).path(SCORES))))


def _tell(scores: Scores) -> int:
    """Show the comparison and return the exit code."""
    found = scores.comparison
    rows = [each.row() for each in found.differences] if found else []
    show_table("accepted length with bonus: the release, then now", rows)
    worse = found.regressions if found else ()
    for line in worse:
        say(Styled("worse:", "bold red"), f" {line}")
    return 1 if worse else 0


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError as error:
        raise SpecError(f"--as-of {text!r} is no ISO 8601 moment; give one such as 2026-01-31T06:00") from error

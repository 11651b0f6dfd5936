"""What a run tells the server about itself: tags that one can search for, and what it made, as artifacts."""

from collections.abc import Iterable
from datetime import timedelta
from urllib.parse import quote

from prefect.artifacts import LinkArtifact, TableArtifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from deepspec.artifacts import ArtifactRef
from deepspec.page.page import plain
from tasks.report import as_shown
from tasks.shown import Shown


def label_run(tags: Iterable[str]) -> timedelta:
    """Add tags to the present flow run; return how long earlier attempts of it have run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return timedelta(0)
    run = context.flow_run
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, tags=sorted({*run.tags, *tags}))
    return run.total_run_time


def show_table(key: str, rows: list[dict[str, str]], description: str) -> None:
    """Show rows beside the run."""
    Shown().put(key, TableArtifact(table=as_shown(rows), description=plain(description)))


def show_link(stage: str, ref: ArtifactRef) -> None:
    """Link a published artifact."""
    where = quote(ref.uri, safe="/:")
    link = LinkArtifact(link=where, link_text=plain(ref.prefix), description=f"made by {stage}")
    Shown().put(f"{stage}-artifact", link)

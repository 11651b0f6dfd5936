"""Prompts, answers and benchmark files that lie on this machine."""

from deepspec.plan.known import Known
from deepspec.plan.resolve import check_sources
from deepspec.plan.rules.seen import Seen
from deepspec.prepare.resolve import unread_files


def local(known: Known) -> Seen:
    """See that they are there; what lies on the hub or behind a URL is asked for when a run begins."""
    check_sources(known.plan, remote=False)
    data = known.plan.dataset
    named = [*data.prompts, *([f"answers in {data.answers}"] if data.answers else [])]
    return Seen(", ".join(named) or "none", unread_files(data.prompts))

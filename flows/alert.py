"""Telling people that a released draft has become worse; started by `deepspec.eval.regressed`."""

import json
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.logging import get_run_logger
from prefect.variables import Variable

from deepspec.errors import SpecError
from deepspec.page.page import paragraph, plain

NOTIFY = "deepspec_notify"
"""Variable: the notification block that alerts go through, such as slack-webhook/oncall; `none` for none."""


@flow(name="alert", flow_run_name="alert-{draft}", persist_result=False)
def alert(draft: str, evidence: dict[str, Any]) -> str:
    """Say which draft has become worse and by what; through a notification block where one is named.

    Args:
        draft: which one.
        evidence: what the re-evaluation found.
    """
    text = message(draft, evidence)
    get_run_logger().warning(text)
    create_markdown_artifact(text, key="regression")
    name = str(Variable.get(NOTIFY))
    if name != "none":
        block = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise SpecError(f"the variable {NOTIFY} names {name}, which is no notification block")
        block.notify(text, subject=f"{draft} has become worse")  # type: ignore[unused-coroutine]
    return text


def message(draft: str, evidence: dict[str, Any]) -> str:
    """Return the alert as Markdown."""
    worse = "\n".join(f"- {paragraph(str(line))}" for line in evidence.get("regressions", ())) or "- see the scores"
    rest = {key: value for key, value in evidence.items() if key != "regressions"}
    told = "".join(f"    {line}\n" for line in json.dumps(rest, indent=1).splitlines())
    return f"## {plain(draft)} has become worse\n\n{worse}\n\n{told}"

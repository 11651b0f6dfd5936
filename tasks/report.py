"""What a stage says, as Prefect artifacts: progress, tables, pictures and texts of the task run."""

import base64
import re
import time
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

UPDATE_SECONDS = 5.0
"""Least time between two updates of a progress artifact: each is a request to the server."""

LINES = 200
"""Most lines of one stage that go to the server's log; the whole log is a file in the store."""


class PrefectReport:
    """A report into the Prefect run that it is created in."""

    def __init__(self, stage: str) -> None:
        """Report on behalf of a stage; nothing is created until there is something to say."""
        self._stage = stage
        self._logger = get_run_logger()
        self._progress: UUID | None = None
        self._updated = 0.0
        self._lines = 0

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Show how far the stage is, at most every few seconds."""
        now = time.monotonic()
        percent = 100.0 * done / total if total else 0.0
        if percent < 100 and now - self._updated < UPDATE_SECONDS:
            return
        self._updated = now
        text = f"{done:,.0f} of {total:,.0f} {unit} {note}".strip()
        if self._progress is None:
            created = create_progress_artifact(progress=percent, key=f"{self._stage}-progress", description=text)
            self._progress = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(artifact_id=self._progress, progress=percent, description=text)

    def log(self, message: str) -> None:
        """Log one line, up to a number of them."""
        self._lines += 1
        if self._lines <= LINES:
            self._logger.info(message)

    def table(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Show rows."""
        create_table_artifact(table=rows, key=self._key(key))

    def figure(self, key: str, png: bytes) -> None:
        """Show a picture, carried in the artifact itself."""
        data = base64.b64encode(png).decode()
        create_image_artifact(image_url=f"data:image/png;base64,{data}", key=self._key(key))

    def markdown(self, key: str, text: str) -> None:
        """Show a text."""
        create_markdown_artifact(markdown=text, key=self._key(key))

    def _key(self, key: str) -> str:
        """Return an artifact key of the letters that Prefect accepts."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self._stage}-{key}".lower()).strip("-")

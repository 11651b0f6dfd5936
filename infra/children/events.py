"""What a child tells: its events become a report, a reference or an error; its other lines are its log."""

import base64
import json
from typing import Any

from deepspec import errors
from deepspec.artifacts import ArtifactRef
from deepspec.errors import CancelledError, DeepSpecError
from deepspec.report import Report
from infra.processes.guard import EVENT
from infra.processes.launch import GRACE_SECONDS

SHOWN = 200
"""Characters of a line that are logged where it looks like an event and is none."""


class Events:
    """Reads a child's lines: events go to a report, the reference and the error are kept."""

    def __init__(self, report: Report) -> None:
        """Listen on behalf of a report."""
        self._report = report
        self.ref: ArtifactRef | None = None
        self.shards: int | None = None
        self.error: DeepSpecError | None = None

    def line(self, line: str) -> None:
        """Take one line of output; one that looks like an event and is none is a line of the log."""
        _, is_event, told = line.partition(EVENT)  # launchers put the name of a rank in front
        if is_event and not self._event(told):
            self._report.log(f"not an event: {told[:SHOWN]}{'…' if len(told) > SHOWN else ''}")

    def _event(self, told: str) -> bool:
        """Pass an event on; return False where it is none."""
        try:
            event = _parsed(told)
        except (ValueError, TypeError):
            return False
        match event:
            case {"event": "progress", "done": int() | float(), "total": int() | float(), "unit": str(), "note": str()}:
                self._report.progress(event["done"], event["total"], event["unit"], event["note"])
            case {"event": "log", "message": str(message)}:
                self._report.log(message)
            case {"event": "table", "key": str(key), "rows": list(rows)}:
                self._report.table(key, rows)
            case {"event": "saving", "seconds": int() | float()}:
                self._report.log(
                    f"should it be asked to stop, it is given {GRACE_SECONDS + event['seconds']:.0f} s to save its "
                    "work; whatever else can end it (a pool, a queue) should give it as long"
                )
                self._report.saving(event["seconds"])
            case {"event": "figure", "key": str(key), "png": bytes(png)}:
                self._report.figure(key, png)
            case {"event": "markdown", "key": str(key), "text": str(text)}:
                self._report.markdown(key, text)
            case _:
                return self._end(event)
        return True

    def _end(self, event: Any) -> bool:
        """Keep what a child says last; return False where it is no event."""
        match event:
            case {"event": "result", "ref": ArtifactRef() as ref}:
                self.ref = ref
            case {"event": "shards", "count": int(count)}:
                self.shards = count
            case {"event": "error", "type": str(name), "message": str(message)}:
                if self.error is None or isinstance(self.error, CancelledError):  # a rank that was asked to stop
                    self.error = errors.rebuilt(name, message)  # knows less than the one that failed
            case _:
                return False
        return True


def _parsed(told: str) -> Any:
    """Return the object in an event, its picture and its reference read.

    Raises:
        ValueError, TypeError: it is none.
    """
    event = json.loads(told)
    if isinstance(event, dict) and "png" in event:
        return {**event, "png": base64.b64decode(event["png"], validate=True)}
    if isinstance(event, dict) and "ref" in event:
        return {**event, "ref": ArtifactRef.model_validate(event["ref"])}
    return event

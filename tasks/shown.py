"""Artifacts of a run on Prefect's server, by key: a server that is away for a while ends nothing."""

import time
from uuid import UUID

import httpx
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

RETRIES = 1
"""Times that a request is made again at once: Prefect's own five take a minute, in which nobody hears the stage."""

AGAIN_SECONDS = 15.0
"""How long a server that did not answer is left alone."""

LATER = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS)
"""Statuses of a server that wants to be asked later; those from 500 on mean as much."""


class Shown:
    """What a run shows on the server: one artifact a key, the newest."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._ids: dict[str, UUID] = {}
        self._waiting: dict[str, Artifact] = {}
        """Key -> what the server has not heard of."""
        self._away_until, self._is_away = 0.0, False

    def put(self, key: str, artifact: Artifact) -> None:
        """Create an artifact, or put it in the place of the one that the key had.

        Where the server does not answer it waits for a later call; what the server refuses is logged.
        """
        artifact.key = key
        self._waiting[key] = artifact
        if time.monotonic() >= self._away_until:
            self.catch_up()

    def catch_up(self) -> None:
        """Show what waits, as far as the server answers."""
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}):
            for key, artifact in list(self._waiting.items()):
                if not self._told(key, artifact):
                    self._leave_alone()
                    return
                del self._waiting[key]
        self._is_away = False

    def _leave_alone(self) -> None:
        """Ask the server again after a while, and say so once."""
        if not self._is_away:
            waiting = ", ".join(self._waiting)
            get_run_logger().warning(f"the Prefect server does not answer: {waiting} not shown yet, the stage goes on")
        self._away_until, self._is_away = time.monotonic() + AGAIN_SECONDS, True

    def _told(self, key: str, artifact: Artifact) -> bool:
        """Return whether the server heard of an artifact, and took it or not."""
        try:
            self._tell(key, artifact)
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error or error.response.status_code in LATER:
                return False
            get_run_logger().warning(f"the server does not take {key}: {error}")
        except httpx.TransportError:
            return False
        return True

    def _tell(self, key: str, artifact: Artifact) -> None:
        if key in self._ids and self._updated(self._ids[key], artifact):
            return
        self._ids[key] = artifact.create().id  # type: ignore[union-attr]  # no event loop here

    def _updated(self, known: UUID, artifact: Artifact) -> bool:
        """Return whether an artifact took the place of a known one: somebody may have deleted that."""
        update = ArtifactUpdate(data=artifact.format(), description=artifact.description)
        try:
            with get_client(sync_client=True) as client:
                client.update_artifact(known, update)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.NOT_FOUND:
                raise
            return False
        return True

"""One endpoint as it is asked for states: token ids go there, a file comes back."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deepspec.engines.client import Client
from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.placement import Endpoint
from deepspec.states.file import delete, read, written
from deepspec.states.staging import Staging
from deepspec.states.wanted import RESTART, Wanted

DEADLINE = 900.0
"""Seconds after which a request is given up: an engine on a busy processor is slow, not dead."""
TOPS = 5
"""Tokens whose log-probabilities an engine tells of the position after the last."""
_TOKEN = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What an engine gave for one sample."""

    states: Tensor
    """`(T, layers and the last before its norm, D)`."""
    tops: Mapping[int, float]
    """Token -> log-probability after the last position, of the likeliest."""
    label: str
    """Of the engine."""

    @property
    def tokens(self) -> int:
        """Return how many tokens the engine read."""
        return len(self.states)


class StatesClient(Client):
    """A client of one endpoint that gives states.

    Args:
        endpoint: where it is and which model it serves.
        wanted: what the states must be of.
        staging: names requests, and hears of the folder that the engine uses.
    """

    def __init__(self, endpoint: Endpoint, wanted: Wanted, staging: Staging) -> None:
        """Make the client; nothing is sent yet."""
        super().__init__(endpoint, DEADLINE)
        self._wanted, self._staging = wanted, staging

    async def ask(self, ids: Sequence[int]) -> Given:
        """Return the states of some tokens; their file is gone then.

        Raises:
            AskError: there are none; says whose fault it is.
            EngineError: they are not what is wanted, or cannot be reached from here.
        """
        name = self._staging.name()
        try:
            given = await self._given(ids, name)
        except (AskError, EngineError) as error:
            if not (isinstance(error, AskError) and error.fault == "late"):  # else it may still come
                self._staging.done(name)
            raise
        self._staging.done(name)
        return given

    async def _given(self, ids: Sequence[int], name: str) -> Given:
        extra = {"max_tokens": 1, "temperature": 0, "request_id": name}
        extra |= {"logprobs": TOPS, "return_tokens_as_token_ids": True}
        reply = await self.complete(list(ids), extra)
        path = self._path(reply, name)
        try:
            await written(path, self.label)
            self._staging.hold(path.parent)
            states = await asyncio.to_thread(read, path, ids, self._wanted, self.label)
        finally:
            delete(path, self.label)
        return Given(states=states, tops=_tops(reply), label=self.label)

    def _path(self, reply: Mapping[str, Any], name: str) -> Path:
        """Return where the engine says that it writes; never a file that is not of this very request."""
        told = reply.get("kv_transfer_params")
        path = told.get("hidden_states_path") if isinstance(told, Mapping) else None
        if not isinstance(path, str):
            raise EngineError(f"engine {self.label} answers and gives no states; {RESTART}")
        if name not in Path(path).name or not path.endswith(".safetensors") or not Path(path).is_absolute():
            raise EngineError(
                f"engine {self.label} names {path[:200]!r} as the file of request {name}; wanted an absolute path with "
                f"the request's name in it; {RESTART}"
            )
        return Path(path)


def _tops(reply: Mapping[str, Any]) -> dict[int, float]:
    try:
        told = reply["choices"][0]["logprobs"]["top_logprobs"][0]
        found = {int(match[1]): float(value) for key, value in told.items() if (match := _TOKEN.fullmatch(key))}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        found = {}
    if not found:
        raise AskError("the answer has no log-probabilities by token id, by which states are proven", "odd")
    return found

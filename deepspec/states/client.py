"""One endpoint as it is asked for states: token ids go there, a file comes back."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deepspec.engines.client import Client
from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.placement import Endpoint
from deepspec.states.place import StatesPlace, place_in
from deepspec.states.staging import Staging
from deepspec.states.wanted import Wanted

DEADLINE = 900.0
"""Seconds after which a request is given up: an engine on a busy processor is slow, not dead."""
TOPS = 5
"""Tokens whose log-probabilities an engine tells of the position after the last."""
_TOKEN = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleStates:
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

    async def ask(self, ids: Sequence[int]) -> SampleStates:
        """Return the states of some tokens; arguments and errors are those of `states_of`."""
        return await states_of(self, ids, self._wanted, self._staging)


async def states_of(
    client: Client, ids: Sequence[int], wanted: Wanted, staging: Staging, *, anew: bool = False
) -> SampleStates:
    """Return the states of some tokens; their file is gone then.

    Args:
        client: of the engine.
        ids: the tokens.
        wanted: what the states must be of.
        staging: names the request, and hears of the folder that the engine uses.
        anew: whether the engine may not take what it remembers of them.

    Raises:
        AskError: there are none; says whose fault it is.
        EngineError: they are not what is wanted, or cannot be reached from here.
    """
    name = staging.name()
    asked = {"max_tokens": 1, "temperature": 0, "request_id": name, **({"cache_salt": name} if anew else {})}
    asked |= {"logprobs": TOPS, "return_tokens_as_token_ids": True}
    try:
        reply = await client.complete(list(ids), asked)
        states = await _taken(reply, name, ids, wanted, staging, client.label)
        given = SampleStates(states=states, tops=_tops(reply), label=client.label)
    except (AskError, EngineError) as error:
        if not (isinstance(error, AskError) and error.fault == "late"):  # else it may still come
            staging.done(name)
        raise
    staging.done(name)
    return given


async def whole(place: StatesPlace, staging: Staging, label: str) -> None:
    """Wait until the states of a request are all there, and show that this run reads where they lie."""
    await place.whole(label)
    if place.folder is not None:
        staging.hold(place.folder)


async def _taken(
    reply: Mapping[str, Any], name: str, ids: Sequence[int], wanted: Wanted, staging: Staging, label: str
) -> Tensor:
    """Return the states of a request from where its reply says that they lie, and delete them there."""
    place = place_in(reply, name, label)
    try:
        await whole(place, staging, label)
        return await asyncio.to_thread(place.states, ids, wanted, label)
    finally:
        await asyncio.to_thread(place.delete, label)


def _tops(reply: Mapping[str, Any]) -> dict[int, float]:
    try:
        told = reply["choices"][0]["logprobs"]["top_logprobs"][0]
        found = {int(match[1]): float(value) for key, value in told.items() if (match := _TOKEN.fullmatch(key))}
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        found = {}
    if not found:
        raise AskError("the answer has no log-probabilities by token id, by which states are proven", "odd")
    return found

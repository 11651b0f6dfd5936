"""States that come with answers and that nobody wants: an engine that gives them writes a file for each request."""

import asyncio
from collections.abc import Mapping
from typing import Any

from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.states.place import place_in


async def dropped(reply: Mapping[str, Any], name: str, label: str) -> str:
    """Delete the states of a request; return why that cannot be done, or nothing.

    Args:
        reply: the engine's, that names their place.
        name: of the request, which is part of their file's: no other file is ever deleted.
        label: of the engine, for messages.
    """
    try:
        place = place_in(reply, name, label)
        try:
            await place.whole(label)
        finally:
            await asyncio.to_thread(place.delete, label)
    except EngineError as error:
        return str(error)
    except AskError:  # its writer failed: there is nothing to delete
        return ""
    return ""

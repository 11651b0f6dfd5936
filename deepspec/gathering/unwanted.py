"""States that come with answers and that nobody wants: an engine that gives them writes a file for each request."""

from collections.abc import Mapping
from typing import Any

from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.states.client import path_in
from deepspec.states.file import delete, written


async def dropped(reply: Mapping[str, Any], name: str, label: str) -> str:
    """Delete the file of a request; return why that cannot be done, or nothing.

    Args:
        reply: the engine's, that names a file.
        name: of the request, which is part of the file's: no other file is ever deleted.
        label: of the engine, for messages.
    """
    try:
        path = path_in(reply, name, label)
        try:
            await written(path, label)
        finally:
            delete(path, label)
    except EngineError as error:
        return str(error)
    except AskError:  # its writer failed: there is nothing to delete
        return ""
    return ""

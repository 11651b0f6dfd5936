"""Endpoint keys that lie in Prefect Secret blocks: read where Prefect is, handed to the child that asks."""

from prefect.blocks.system import Secret

from deepspec.errors import SpecError
from deepspec.placement import Endpoint
from infra.site import Site


def keys_of(site: Site) -> dict[str, str]:
    """Return the keys that a site names as Secret blocks: variable in which the child finds one -> key.

    Raises:
        SpecError: a key is neither there nor in the environment.
    """
    site.check_keys()
    return {
        str(endpoint.key_variable): block_key(endpoint)
        for endpoint in site.placement.endpoints
        if endpoint.api_key_block
    }


def block_key(endpoint: Endpoint) -> str:
    """Return the key in an endpoint's Secret block.

    Raises:
        SpecError: there is no such block, or it holds no text; the message names it, never a value.
    """
    name = str(endpoint.api_key_block)
    try:
        key = Secret.load(name).get()  # type: ignore[union-attr]
    except ValueError:
        raise SpecError(
            f"no Secret block {name!r} on this Prefect server, named as an endpoint's key; make one in its UI"
        ) from None
    if not isinstance(key, str) or not key:
        raise SpecError(f"the Secret block {name!r} holds no text; wanted an endpoint's key")
    return key

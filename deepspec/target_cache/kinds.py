"""Of which kind each held-out sample of a cache is: the source that its prompt names, or the file it came from."""

import json
from collections.abc import Mapping
from pathlib import Path

from deepspec.artifacts import Artifact
from deepspec.errors import CorruptArtifactError

KINDS = "kinds.json"
"""Name of the file in the artifact; caches that were imported, or made before it, have none."""


def write_kinds(path: Path, kinds: Mapping[str, str]) -> None:
    """Write sample id -> kind; the same kinds give the same bytes."""
    path.write_text(json.dumps({"version": 1, "kinds": dict(sorted(kinds.items()))}, ensure_ascii=False) + "\n")


def read_kinds(cache: Artifact) -> dict[str, str]:
    """Return sample id -> kind; empty where the cache does not tell.

    Raises:
        CorruptArtifactError: it tells in a form of a later version.
    """
    if KINDS not in cache.names():
        return {}
    told = json.loads(cache.read_bytes(KINDS))
    if not isinstance(told, dict) or told.get("version") != 1:
        raise CorruptArtifactError(
            f"{cache.prefix}: {KINDS} is not of version 1; read it with the release that wrote it"
        )
    return {str(name): str(kind) for name, kind in told["kinds"].items()}

"""A quick digest of a model's folder, which the engine tells beside every file of states."""

import hashlib
from pathlib import Path

BLOCKS, BLOCK_BYTES = 64, 4096
"""Of each weight file so many pieces enter the digest, beside its header and its size."""


def digest_of(folder: Path) -> str:
    """Return a quick digest of a model's folder: its config, and of each weight file name, size, header and samples.

    `infra/connector/deepspec_states.py` has the same function, for the engine's side imports nothing of ours.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(file.read(length))
            for number in range(BLOCKS):
                file.seek(8 + length + (size - 8 - length) * number // BLOCKS)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()[:32]

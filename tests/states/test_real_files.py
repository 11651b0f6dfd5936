"""Files of states as a real kernel has them: of another user, and in a folder that is full."""

import ast
import asyncio
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from deepspec.engines.failures import AskError
from deepspec.errors import EngineError
from deepspec.gathering.asked import proof_of
from deepspec.states.file import delete, read_states, written
from deepspec.target.load import load_target
from infra.engines.states import CONNECTOR
from tests.given.engines.bench import Bench


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_files_that_another_user_wrote_for_himself(bench: Bench) -> None:
    wanted = proof_of(bench.spec(), load_target(bench.target, "float32"), (-1, 1, 3)).wanted
    with TemporaryDirectory() as place:
        engine = bench.served()
        engine.folder = Path(place)
        path = engine.folder / "x.safetensors"
        engine._write_file(path, [1, 2], torch.zeros(2, 4, 32), 1)
        path.chmod(0o600)
        engine.folder.chmod(0o755)
        for use in (lambda: read_states(path, [1, 2], wanted, "it"), lambda: delete(path, "it")):
            with (
                as_nobody(),
                pytest.raises(EngineError, match=r"may not read and delete; run both as one user or group"),
            ):
                use()
        assert path.exists()


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_is_full_is_told_by_the_connector_and_its_lock_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        write = connector_method("_write_tensors")
        told, path = SimpleNamespace(_told={}), folder / "cmpl-deepspec-a-1.safetensors"
        held = os.open(f"{path}.lock", os.O_CREAT | os.O_WRONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        tensors = {"hidden_states": torch.zeros(100_000), "token_ids": torch.tensor([1])}
        with pytest.raises((OSError, SafetensorError)):
            write(told, tensors, SimpleNamespace(synchronize=lambda: None), str(path), held)
        with pytest.raises(AskError, match=r"small is full; free it, or lower DEEPSPEC_STAGING_GB \(.*No space left"):
            asyncio.run(written(path, "it"))
        assert [each.suffix for each in sorted(folder.iterdir())] == [".error", ".lock"]
        delete(path, "it")
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def connector_method(name: str) -> Any:
    """Return a method of the connector, and what it calls, without importing vLLM."""
    tree = ast.parse((CONNECTOR / "deepspec_states.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    wanted: list[ast.stmt] = [node for node in functions if node.name in (name, "checksum")]
    space: dict[str, object] = {}
    exec(
        "import os, torch, zlib\nfrom contextlib import suppress\nfrom pathlib import Path\nfrom typing import Any\n"
        "from safetensors.torch import save_file\nFILE_MODE = 0o660\n",
        space,
    )
    exec(compile(ast.Module(wanted, []), "connector", "exec"), space)
    return space[name]

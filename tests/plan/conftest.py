import shutil
from pathlib import Path

import pytest

from tests.given.targets.tiny import write_target
from tests.plan.placed import questions


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("original"))


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a target, a benchmark of three questions, and room for a store."""
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "300")
    shutil.copytree(original, tmp_path / "target")
    (tmp_path / "benchmarks").mkdir()
    questions(tmp_path, 10, 20, 30)
    return tmp_path

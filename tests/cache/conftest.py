"""A tiny target, a store, and object storage on loopback."""

from pathlib import Path

import pytest

from deepspec.store import Store
from tests.given.s3 import s3, s3_server  # noqa: F401 - fixtures
from tests.given.targets.tiny import write_target


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")

"""Answers, an engine that gives states, and the stage over both."""

from pathlib import Path

import pytest

from tests.given.engines.bench import Bench
from tests.given.s3 import s3, s3_server  # noqa: F401 - fixtures
from tests.given.targets.tiny import write_target


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def bench(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Waits are shortened: the tests are about order, not about patience."""
    monkeypatch.setattr("deepspec.engines.dispatcher.FIRST_WAIT", 0.01)
    monkeypatch.setattr("deepspec.engines.dispatcher.FIRST_PROBE", 0.02)
    monkeypatch.setattr("deepspec.engines.dispatcher.LONGEST_PROBE", 0.1)
    monkeypatch.setattr("deepspec.engines.dispatcher.DEFAULT_PAUSE", 0.01)
    monkeypatch.setattr("deepspec.gathering.asking.TICK_SECONDS", 0.05)
    return Bench(target, tmp_path)

"""Prompts to answer, and a bench that runs the stage as it will be run."""

from pathlib import Path

import pytest

from tests.given.engines.prompts import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Waits are shortened: the tests are about order, not about patience."""
    monkeypatch.setattr("deepspec.engines.dispatcher.FIRST_WAIT", 0.02)
    monkeypatch.setattr("deepspec.engines.dispatcher.FIRST_PROBE", 0.05)
    monkeypatch.setattr("deepspec.engines.dispatcher.LONGEST_PROBE", 0.2)
    monkeypatch.setattr("deepspec.regenerate.run.TICK_SECONDS", 0.1)
    return Bench(tmp_path)

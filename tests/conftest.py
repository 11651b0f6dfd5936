"""How tests are shared out: a file stays with one worker, so that what it builds is built once."""

from pathlib import Path

import pytest

LONGEST = Path(__file__).parent / "e2e"
"""Tests that share one server and one run of the whole pipeline: one worker begins with them."""


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST not in item.path.parents)
    for item in items:
        group = LONGEST if LONGEST in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))

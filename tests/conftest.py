"""How tests are shared out: a file stays with one worker, so that what it builds is built once."""

import pytest
from xdist.scheduler import LoadFileScheduling

E2E = "tests/e2e/"
"""Tests that share one server and one run of the whole pipeline: one worker begins with them."""


class ByFile(LoadFileScheduling):
    """Files go to workers whole, those of `E2E` all to the same."""

    def _split_scope(self, nodeid: str) -> str:
        return E2E if nodeid.startswith(E2E) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(E2E))

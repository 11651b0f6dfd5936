"""How tests are shared out: a file stays with one worker, so that what it builds is built once."""

from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

settings.register_profile("whatever the machine does", deadline=None)
settings.load_profile("whatever the machine does")

E2E = "tests/e2e/"
"""The longest tests: workers begin with them."""
WHOLE = ("tests/e2e/test_bad_input.py", "tests/e2e/test_pipeline.py")
"""They share one run of the whole pipeline."""


class ByFile(LoadFileScheduling):  # type: ignore[misc]  # of a library without types
    """Files go to workers whole, those of `WHOLE` all to the same."""

    def _split_scope(self, nodeid: str) -> str:
        return WHOLE[0] if nodeid.startswith(WHOLE) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(E2E))

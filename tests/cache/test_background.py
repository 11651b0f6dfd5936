"""Work behind the forward pass stops where it failed: what follows builds on it."""

import threading
from collections.abc import Callable

import pytest

from deepspec.cache.background import Background


class BrokenError(Exception):
    pass


def broken() -> None:
    raise BrokenError


def run_all(*calls: Callable[[], object]) -> None:
    with Background(depth=4) as work:
        for call in calls:
            work.run(call)


def give_up(done: list[str]) -> None:
    goes_on = threading.Event()
    with Background(depth=4) as work:
        work.run(goes_on.wait)
        for name in ("encode", "close", "commit"):
            work.run(done.append, name)
        threading.Timer(0.1, goes_on.set).start()
        raise BrokenError


def test_nothing_runs_after_a_call_that_failed() -> None:
    done: list[str] = []
    with pytest.raises(BrokenError):
        run_all(lambda: done.append("encode"), broken, lambda: done.append("commit"))
    assert done == ["encode"]


def test_nothing_runs_once_the_caller_failed() -> None:
    done: list[str] = []
    with pytest.raises(BrokenError):
        give_up(done)
    assert done == []


def test_all_runs_in_order_where_nothing_fails() -> None:
    done: list[int] = []
    with Background(depth=2) as work:
        for number in range(20):
            work.run(done.append, number)
    assert done == list(range(20))

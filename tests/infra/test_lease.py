"""Runs of one store on two machines take turns at what both would make, as far as can be seen who lives."""

import json
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from deepspec.errors import BudgetError, StoreError
from deepspec.store import Store
from infra.children import lease as room
from infra.children.lease import DEAD_SECONDS, Lease, leased

KEY = "draft/a/claims/run.json"


class Clock:
    """One machine's clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def elsewhere(store: Store) -> None:
    """Let whoever holds the key be of another machine, whose processes are not seen."""
    told = json.loads(store.read_bytes(KEY))
    store.write_bytes(KEY, json.dumps({**told, "host": "far"}).encode())


def test_one_holds_it_and_the_next_has_it_once_it_is_given_back(store: Store) -> None:
    one, other = Lease(store, KEY), Lease(store, KEY)
    assert one.take()
    assert not other.take()
    other.drop()  # it is not its own
    assert not other.take()
    one.drop()
    assert other.take()


def test_who_shows_life_keeps_it_whatever_the_clocks_say(store: Store) -> None:
    """The holder's clock stands still, that of the other one runs: what counts is that the key changes."""
    clock = Clock()
    one, other = Lease(store, KEY), Lease(store, KEY, clock)
    assert one.take()
    for _ in range(5):
        assert one.beat()
        elsewhere(store)
        assert not other.take()
        clock.now += DEAD_SECONDS - 1
        assert not other.take()
    assert other.seen is not None
    assert other.seen.host == "far"


def test_of_who_shows_none_it_is_taken_and_left_to_the_other_one(store: Store) -> None:
    clock = Clock()
    one, other = Lease(store, KEY), Lease(store, KEY, clock)
    assert one.take()
    elsewhere(store)
    clock.now = 1e6  # it has just begun to look
    assert not other.take()
    clock.now += DEAD_SECONDS
    assert other.take()
    assert not one.beat()
    one.drop()
    assert other.beat()


def test_of_a_process_of_this_machine_that_was_killed_it_is_taken_at_once(store: Store) -> None:
    take = f"Lease(Store({store.root!r}), {KEY!r}).take()"
    imports = "from deepspec.store import Store; from infra.children.lease import Lease"
    subprocess.run([sys.executable, "-c", f"{imports}; {take}"], check=True)
    assert store.exists(KEY)
    assert Lease(store, KEY).take()


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b'{"owner": 3}'])
def test_a_key_that_names_nobody_is_taken(store: Store, data: bytes) -> None:
    store.write_bytes(KEY, data)
    assert Lease(store, KEY).take()


def test_who_waits_says_for_whom_and_goes_on_once_it_is_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.01)
    waits, said, done = Event(), list[str](), list[str]()

    def waiting(host: str) -> None:
        said.append(host)
        waits.set()

    def second() -> None:
        with leased(store, KEY, waiting):
            done.append("second")

    with leased(store, KEY, said.append):
        later = Thread(target=second, daemon=True)
        later.start()
        assert waits.wait(60)
        done.append("first")
    later.join(60)
    assert done == ["first", "second"]
    assert len(set(said)) == 1
    assert not store.exists(KEY)


def test_who_holds_it_shows_life_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    beats, beat = Event(), Lease.beat
    monkeypatch.setattr(room, "BEAT_SECONDS", 0.01)

    def noted(lease: Lease) -> Any:
        found = beat(lease)
        beats.set()
        return found

    monkeypatch.setattr(Lease, "beat", noted)
    with leased(store, KEY, lambda _: None):
        assert beats.wait(60)
        assert json.loads(store.read_bytes(KEY))["beats"] > 0
    assert not store.exists(KEY)


def test_what_ends_the_waiting_is_raised(store: Store) -> None:
    def waiting(host: str) -> None:
        raise BudgetError(f"no time to wait for {host}")

    assert Lease(store, KEY).take()
    with pytest.raises(BudgetError, match="no time"), leased(store, KEY, waiting):
        pass
    assert store.exists(KEY)


def test_a_store_that_fails_ends_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bool:
        raise StoreError("the store is busy")

    for name in ("create", "read_bytes", "write_bytes", "delete"):
        monkeypatch.setattr(Store, name, fails)
    done = []
    with leased(store, KEY, lambda _: None):
        done.append("made")
    assert done == ["made"]

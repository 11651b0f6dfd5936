"""States through a store, between machines that share no folder: a carrier beside the engine, over a real S3 server."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from deepspec.errors import EngineError, StoreError
from deepspec.messages.conversations import published_rows
from deepspec.placement import Endpoint
from deepspec.states import carrier
from deepspec.states.carrier import Carrier
from deepspec.states.stored import StatesInStore
from deepspec.store import Store
from deepspec.store.objects import ObjectStorage
from tests.given.engines.bench import Bench
from tests.given.engines.carried import carrying
from tests.given.engines.one_pass import ALL, Line
from tests.given.engines.states import serving
from tests.given.engines.training import SPEC, checksums, tokens_of, train
from tests.given.published.caches import publish_answers, rows

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Answers whose ids differ from file to file."""
    monkeypatch.setattr("deepspec.regenerate.run.TICK_SECONDS", 0.05)
    told = rows(19)
    bench.answers = publish_answers(bench.store, bench.folder, [told[:10], told[10:]], address="b")
    return bench


def trained(bench: Bench, *endpoints: Endpoint, name: str) -> dict[str, str]:
    ref = train(bench.store, bench.folder, tokens_of(bench), bench.target, SPEC, bench.heard, *endpoints, name=name)
    return checksums(ref, bench.store, bench.folder)


def test_states_through_a_store_train_the_very_draft_that_those_of_a_folder_do(bench: Bench, s3: Store) -> None:
    with serving(bench.served()) as engine, carrying(engine, s3) as far:
        near = trained(bench, engine.endpoint, name="near")
        asked = len(engine.asked)
        assert trained(bench, far, name="far") == near
        assert len(engine.asked) == 2 * asked
    assert s3.list("states") == []
    assert bench.left() == []


def captured(bench: Bench, endpoint: Endpoint) -> None:
    engine = bench.served()
    engine.port = int(endpoint.url.split(":")[2].split("/")[0])
    bench.run(engine)


def test_an_engine_and_a_store_that_fail_are_asked_again(
    bench: Bench, s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failed = Store.put_file, [0]

    def failing(self: Store, path: Path, key: str) -> None:
        failed[0] += key.startswith("states")
        if key.startswith("states") and failed[0] in (5, 6, 9):
            raise StoreError("the store is busy")
        put(self, path, key)

    monkeypatch.setattr(Store, "put_file", failing)
    with serving(bench.served()) as engine, carrying(engine, s3) as far:
        engine.fail_at = {8, 12}
        captured(bench, far)
    assert len(bench.opened(bench.own())) == 19
    assert failed[0] >= 19 + 3 + 3
    assert s3.list("states") == []
    assert bench.left() == []


def test_a_store_that_refuses_for_good_ends_the_run_at_once(
    bench: Bench, s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its permission is taken away after the proof: what is under way then is asked for, and nothing again."""
    put, puts, told = ObjectStorage.put, [0], list[str]()

    def refusing(self: ObjectStorage, path: Path, key: str) -> None:
        puts[0] += key.startswith("states")
        if key.startswith("states") and puts[0] > 5:
            raise PermissionError("Access Denied")
        put(self, path, key)

    monkeypatch.setattr(ObjectStorage, "put", refusing)
    with (
        serving(bench.served()) as engine,
        carrying(engine, s3, told.append) as far,
        pytest.raises(
            EngineError,
            match=r"asking again is of no use: cannot write s3://.*the key has no permission",
        ),
    ):
        captured(bench, far)
    assert len(engine.asked) == len(set(map(tuple, engine.asked[3:]))) + 3
    assert len(told) == 1
    assert "the key has no permission for this in bucket" in told[0]
    assert s3.list("states") == []
    assert bench.left() == []


def test_a_store_that_the_run_may_not_read_ends_it_at_once(
    bench: Bench, s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(self: ObjectStorage, key: str) -> bytes:
        raise PermissionError("Access Denied")

    with serving(bench.served()) as engine, carrying(engine, s3) as far:
        monkeypatch.setattr(ObjectStorage, "read", refusing)
        with pytest.raises(
            EngineError, match=r"into a store that this run may not read: cannot read s3://.*has no permission"
        ):
            captured(bench, far)
    assert len(engine.asked) == 1


@pytest.mark.parametrize(
    ("spoil", "match"),
    [("bytes", "does not match its own checksum"), ("ids", "of other token ids"), ("full", "is full")],
)
def test_files_that_are_not_what_was_asked_for_are_one_line(bench: Bench, s3: Store, spoil: str, match: str) -> None:
    with (
        serving(bench.served(spoil=spoil)) as engine,
        carrying(engine, s3) as far,
        pytest.raises(EngineError, match=match) as raised,
    ):
        captured(bench, far)
    assert "\n" not in str(raised.value)
    assert s3.list("states") == []
    assert bench.left() == []


def test_an_engine_that_is_gone_is_told_through_its_carrier(bench: Bench, s3: Store) -> None:
    with serving(bench.served()) as engine:
        pass
    with (
        carrying(engine, s3) as far,
        pytest.raises(EngineError, match="the engine behind this carrier does not answer"),
    ):
        captured(bench, far)


def test_a_store_that_only_the_carrier_sees_is_one_line(
    bench: Bench, s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Carrier, "_carry", _elsewhere)
    with (
        serving(bench.served()) as engine,
        carrying(engine, s3) as far,
        pytest.raises(EngineError, match=r"and there is nothing: give carrier and run the same store"),
    ):
        captured(bench, far)


async def _elsewhere(self: Carrier, named: str) -> str:
    return f"{self._store.root}/states/{Path(named).name}"


def test_states_with_answers_come_through_a_store_to_the_byte(bench: Bench, s3: Store) -> None:
    near, far = Line(bench.target, bench.folder / "near"), Line(bench.target, bench.folder / "far")
    spec, made = near.cache_spec(), []
    with serving(bench.served()) as engine, carrying(engine, s3) as carried:
        for one, endpoint in ((near, engine.endpoint), (far, carried)):
            answers = one.answers(spec, endpoint)
            told = [{**row, "endpoint": ""} for row in published_rows(answers)]
            ref = one.cache(spec, answers)  # of the engine nothing is asked again
            made.append((told, checksums(ref, one.store, one.scratch)))
    assert made[0] == made[1]
    assert f"states of {ALL} samples came with the answers, 0 were asked for" in far.heard.lines
    assert s3.list("states") == []
    assert bench.left() == []


def test_an_answer_whose_states_a_store_does_not_take_is_an_answer_and_is_read_once_more(
    bench: Bench,
    s3: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, proven = Store.put_file, [0]

    def busy(self: Store, path: Path, key: str) -> None:
        if key.startswith("states") and len(engine.salts) == 3:  # the last prompt of the proof is read once more
            proven[0] += 1
            if proven[0] > 1:
                raise StoreError("the store is busy")
        put(self, path, key)

    one = Line(bench.target, bench.folder / "line")
    spec = one.cache_spec()
    with serving(bench.served()) as engine, carrying(engine, s3) as far:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "put_file", busy)
            answers = one.answers(spec, far)
        answered = len(engine.answered)
        one.cache(spec, answers, far)
    assert answers.counts["success"] == ALL
    assert answered == len(engine.answered)
    assert any(f"{ALL} without a whole file" in line for line in one.heard.lines)
    assert f"states of 0 samples came with the answers, {ALL} were asked for" in one.heard.lines
    assert s3.list("states") == []
    assert bench.left() == []


def test_states_with_answers_that_have_no_room_are_not_fetched(
    bench: Bench,
    s3: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched, bring = list[str](), StatesInStore.bring

    def noted(states: StatesInStore, *args: Any) -> Any:
        fetched.append(states.key)
        return bring(states, *args)

    monkeypatch.setattr(StatesInStore, "bring", noted)
    one = Line(bench.target, bench.folder / "line")
    with serving(bench.served()) as engine, carrying(engine, s3) as far:
        one.answers(one.cache_spec(keep_states=60_000), far)
    assert 0 < len(one.kept()) == len(fetched) < ALL
    assert sum(path.stat().st_size for path in one.kept()) <= 60_000
    assert s3.list("states") == []


def test_states_with_answers_that_are_of_other_tokens_are_not_kept(bench: Bench, s3: Store) -> None:
    one = Line(bench.target, bench.folder / "line")
    with serving(bench.served()) as engine, carrying(engine, s3) as far:
        engine.told_later = (16, {"model": "1" * 32})
        with pytest.raises(EngineError, match=r"its weights have changed since"):
            one.answers(one.cache_spec(), far)
    assert len(one.kept()) < ALL
    assert not list(one.scratch.rglob("*.unfinished"))


def test_states_that_come_through_a_store_and_that_nobody_wants_are_deleted(bench: Bench, s3: Store) -> None:
    one = Line(bench.target, bench.folder / "line")
    with serving(bench.served()) as engine, carrying(engine, s3) as far:
        assert one.answers(one.cache_spec(while_answering=False), far).counts["success"] == ALL
    assert engine.files > ALL
    assert s3.list("states") == []
    assert any("they are deleted as they come" in line for line in one.heard.lines)


def test_what_nobody_took_is_deleted_after_an_hour_and_what_is_not_ours_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    for name in ("states/cmpl-deepspec-a-1.safetensors", "states/cmpl-deepspec-b-1.safetensors", "states/theirs"):
        store.write_bytes(name, b"x")
    old = time.time() - 2 * carrier.KEPT_SECONDS
    for name in ("cmpl-deepspec-a-1.safetensors", "theirs"):
        os.utime(tmp_path / "states" / name, (old, old))
    assert Carrier("http://127.0.0.1:1/v1", store).sweep() == 1
    assert store.list("states") == ["states/cmpl-deepspec-b-1.safetensors", "states/theirs"]


def test_a_place_in_a_store_is_told_from_a_path() -> None:
    assert StatesInStore.at("s3://b/root/states/x.safetensors") == StatesInStore("s3://b/root/states", "x.safetensors")
    assert StatesInStore.at("/dev/shm/x.safetensors") is None
    assert StatesInStore.at("file:///etc/passwd") is None


def test_a_carrier_that_cannot_write_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["carry-states", "http://127.0.0.1:1/v1", "--root", str(tmp_path / "file" / "x")])
    assert isinstance(result.exception, StoreError)

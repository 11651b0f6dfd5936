"""States in memory of the engine's machine: a stand-in for Mooncake with its faults, and the real one where it is."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from deepspec.depots import depot, mooncake
from deepspec.depots.depot import depot_at
from deepspec.depots.mooncake import MooncakeMemory
from deepspec.errors import FullDiskError, RefusedError, SpecError, StoreError
from deepspec.placement import Endpoint
from deepspec.states.stored import StatesInStore
from deepspec.store import Store
from tests.given.engines.bench import Bench
from tests.given.engines.carried import carrying
from tests.given.engines.mooncake import Cluster, stand_in
from tests.given.engines.states import serving
from tests.given.engines.training import SPEC, checksums, tokens_of, train
from tests.given.published.caches import publish_answers, rows

ROOM = 10_000
KEY = "states/deepspec-1.safetensors"


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Cluster]]:
    depot._opened.cache_clear()
    with stand_in(monkeypatch) as found:
        yield found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deepspec-1.safetensors"
    path.write_bytes(bytes(range(100)) * 40)
    return path


def trained(bench: Bench, endpoint: Endpoint, name: str) -> dict[str, str]:
    ref = train(bench.store, bench.folder, tokens_of(bench), bench.target, SPEC, bench.heard, endpoint, name=name)
    return checksums(ref, bench.store, bench.folder)


def test_what_is_put_is_read_by_the_uri_and_deleted(master: tuple[str, Cluster], file: Path, tmp_path: Path) -> None:
    url, cluster = master
    carrier = depot_at(url, ROOM)
    carrier.check_writable()
    carrier.put_file(file, KEY)
    assert list(carrier.entries("states")) == [KEY]
    assert carrier.entries("other") == {}
    found = StatesInStore.at(carrier.uri(KEY))
    assert found is not None
    reader = depot.opened_depot(found.root)
    assert (reader.read_bytes(found.key), reader.size(found.key)) == (file.read_bytes(), 4000)
    reader.get_file(found.key, tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == file.read_bytes()
    found.delete("engine")
    found.delete("engine")  # what is not there is no error
    assert (cluster.objects, dict(carrier.entries("states"))) == ({}, {})


def test_a_full_memory_is_seen_before_anything_is_forgotten(master: tuple[str, Cluster], file: Path) -> None:
    """Of 10,000 bytes 9,000 are filled: two of 4,000. What others have read is room again."""
    url, cluster = master
    carrier = depot_at(url, ROOM)
    for number in (1, 2):
        carrier.put_file(file, f"states/{number}")
    with pytest.raises(FullDiskError, match="beside states that nobody has read yet: 9000 bytes at most"):
        carrier.put_file(file, "states/3")
    del cluster.objects["states/1"]
    carrier.put_file(file, "states/3")
    assert sorted(cluster.objects) == ["states/2", "states/3"]


@pytest.mark.parametrize(
    ("call", "code", "kind", "match"),
    [("put", -200, FullDiskError, "is full of states"), ("put", -900, StoreError, "Mooncake returned -900"),
     ("setup", -1, StoreError, "does not begin: it returned -1")],
)  # fmt: skip
def test_what_it_does_not_take_is_one_line(
    master: tuple[str, Cluster], file: Path, call: str, code: int, kind: type[StoreError], match: str
) -> None:
    master[1].broken[call] = code
    with pytest.raises(kind, match=match):
        depot_at(master[0], ROOM).put_file(file, KEY)


def test_an_object_too_large_is_refused_with_what_helps(master: tuple[str, Cluster], file: Path) -> None:
    with pytest.raises(RefusedError, match=r"would take 4000 bytes, more than the 900 .*lower cache.max_length"):
        depot_at(master[0], 1000).put_file(file, KEY)


def test_bytes_that_are_missing_or_cut_are_a_fault_that_passes(master: tuple[str, Cluster], file: Path) -> None:
    url, cluster = master
    carrier = depot_at(url, ROOM)
    with pytest.raises(StoreError, match=r"is not there \(Mooncake returned -704\)"):
        carrier.read_bytes(KEY)
    carrier.put_file(file, KEY)
    cluster.broken["get"] = 17
    with pytest.raises(StoreError, match="gave 17 of 4000 bytes"):
        carrier.read_bytes(KEY)
    cluster.broken["remove"] = -5
    with pytest.raises(StoreError, match=r"cannot delete .*returned -5"):
        carrier.delete(KEY)


def test_threads_share_buffer_and_room(
    master: tuple[str, Cluster], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads put and read 4,000 bytes each through a buffer of 9,000; a memory of 10,000 takes two."""
    url, cluster = master
    monkeypatch.setattr(mooncake, "BUFFER", 9000)
    cluster.buffer = 9000
    carrier = depot_at(url, 1_000_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: carrier.put_file(file, f"states/{number}"), range(8)))
        read = list(pool.map(lambda number: carrier.read_bytes(f"states/{number}"), range(8)))
    assert read == [file.read_bytes()] * 8
    small, taken = depot_at(url, ROOM), list[int]()

    def put(number: int) -> None:
        with contextlib.suppress(FullDiskError):
            small.put_file(file, f"other/{number}")
            taken.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(8)))
    assert len(taken) == 2
    with ThreadPoolExecutor(8) as pool:
        assert len({id(each) for each in pool.map(lambda _: depot.opened_depot(url), range(8))}) == 1


@pytest.mark.parametrize(
    "url", ["mooncake://", "mooncake://host", "mooncake://host:port", "mooncake://a b:1", "mooncake://[::1]:1"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SpecError, match="wanted mooncake://HOST:PORT"):
        depot_at(url)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mooncake, "PACKAGE", "nothing.of.this.name")
    with pytest.raises(SpecError, match=r"pip install 'deepspec\[mooncake\]', and apt-get install"):
        depot_at("mooncake://127.0.0.1:1")


def test_a_master_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(monkeypatch) as (url, _):
        pass  # nobody listens there any more
    with pytest.raises(StoreError, match=r"no master of Mooncake answers at mooncake://127.0.0.1:.*mooncake_master up"):
        depot_at(url, ROOM).check_writable()


def test_other_urls_are_stores(tmp_path: Path) -> None:
    assert isinstance(depot_at(str(tmp_path)), Store)
    assert isinstance(depot_at("s3://bucket/x"), Store)


@pytest.mark.slow
def test_states_in_memory_train_the_very_draft_that_those_of_a_folder_do(
    bench: Bench, master: tuple[str, Cluster]
) -> None:
    """Every seventh of them is forgotten before it is read: that costs another request, and nothing else."""
    url, cluster = master
    told = rows(19)
    bench.answers = publish_answers(bench.store, bench.folder, [told[:10], told[10:]], address="b")
    put, carried, forgotten = MooncakeMemory.put_file, list[str](), list[str]()

    def forgetting(self: MooncakeMemory, path: Path, key: str) -> None:
        put(self, path, key)
        carried.append(key)
        if len(carried) % 7 == 0:
            forgotten.append(key)
            del cluster.objects[key]

    with pytest.MonkeyPatch.context() as patched, serving(bench.served()) as engine:
        near = trained(bench, engine.endpoint, "near")
        patched.setattr(MooncakeMemory, "put_file", forgetting)
        with carrying(engine, depot_at(url, 1 << 24)) as far:
            assert trained(bench, far, "far") == near
    assert len(forgotten) > 2
    assert cluster.objects == {}
    assert bench.left() == []


def real_master(folder: Path) -> Iterator[str]:
    """Yield the URL of a real master on loopback, if its package is here."""
    if find_spec("mooncake") is None:
        pytest.skip("the extra `mooncake` is not installed (pip install -e '.[mooncake]')")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, metrics = one.getsockname()[1], other.getsockname()[1]
    told = ["--rpc_address=127.0.0.1", f"--rpc_port={port}", "--metrics_host=127.0.0.1", f"--metrics_port={metrics}"]
    with (folder / "master.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "mooncake.cli", *told], stdout=log, stderr=log)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, (folder / "master.log").read_text()[-2000:]
                time.sleep(0.05)
        yield f"mooncake://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    depot._opened.cache_clear()
    yield from real_master(tmp_path)


@pytest.mark.slow
def test_the_real_one_keeps_what_is_put_and_forgets_what_is_deleted(real: str, file: Path) -> None:
    carrier, reader = depot_at(real, 1 << 26), depot_at(real)
    carrier.put_file(file, KEY)
    assert reader.read_bytes(KEY) == file.read_bytes()
    reader.delete(KEY)
    assert dict(carrier.entries("states")) == {}
    with pytest.raises(StoreError, match="is not there"):
        reader.size(KEY)


@pytest.mark.slow
def test_the_real_one_trains_the_very_draft_that_a_folder_does(bench: Bench, real: str) -> None:
    told = rows(19)
    bench.answers = publish_answers(bench.store, bench.folder, [told[:10], told[10:]], address="b")
    memory = depot_at(real, 1 << 26)
    with serving(bench.served()) as engine, carrying(engine, memory) as far:
        near = trained(bench, engine.endpoint, "near")
        assert trained(bench, far, "far") == near
    assert dict(memory.entries("states")) == {}
    assert bench.left() == []


PUTS = """
import sys
from pathlib import Path
from deepspec.depots.depot import depot_at
memory = depot_at(sys.argv[1], 1 << 26)
memory.put_file(Path(sys.argv[2]), sys.argv[3])
print("put", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_the_real_one_misses_what_a_killed_process_held(real: str, file: Path) -> None:
    words = [sys.executable, "-c", PUTS, real, str(file), KEY]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert b"put" in child.stdout.readline()
        reader = depot_at(real)
        assert reader.read_bytes(KEY) == file.read_bytes()
        child.kill()
    with pytest.raises(StoreError, match=r"is not there|of 4000 bytes"):
        until_missed(reader)


def until_missed(reader: depot.Depot) -> None:
    """Read a key for as long as the master takes to miss it."""
    while reader.read_bytes(KEY):
        time.sleep(0.1)

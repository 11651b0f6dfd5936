"""The stage on small files: everything read is kept or counted, and rows never move for reasons outside them."""

import json
import random
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepspec.errors import RowError, SourceError
from deepspec.lines.rows import read_rows, write_rows
from deepspec.placement import Placement
from deepspec.prepare.resolve import HUB, find_sources
from deepspec.prepare.run import run
from deepspec.prepare.spec import PrepareSpec, Source, Splits
from deepspec.publish import Out
from deepspec.store import Store
from tests.given.heard import Heard

WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "larch")


def prompt(number: int) -> str:
    """Return a prompt of 60 words that shares none with another number's."""
    return " ".join(f"{WORDS[place % 12]}{number}{place}" for place in range(60))


def prepare(
    tmp_path: Path, files: dict[str, Any], benchmarks: str | None = None, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Run the stage on files of rows; return the rows, the counts and the dropped.json."""
    (tmp_path / "in").mkdir(exist_ok=True)
    for name, rows in files.items():
        write_rows(tmp_path / "in" / name, rows)
    resolved = find_sources([str(tmp_path / "in" / name) for name in files], benchmarks)
    spec = PrepareSpec(sources=resolved.sources, benchmarks=resolved.benchmarks, **options)
    return run_spec(tmp_path, spec, resolved.locations)


def run_spec(
    tmp_path: Path, spec: PrepareSpec, locations: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    out = Out(Store(tmp_path / "store"), "prompts", "address", {}, tmp_path / "scratch")
    counts = run(spec, {}, out, Placement(locations=locations), Heard())
    parts = sorted(out.folder.glob("part-*.jsonl.zst"))
    rows = [row for part in parts for _, row in read_rows(part)]
    return rows, counts, json.loads((out.folder / "dropped.json").read_text())


def test_every_row_is_kept_or_counted(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    write_rows(tmp_path / "bench" / "b.jsonl", [{"turns": [prompt(3)]}])
    rows = [{"prompt": prompt(number), "source": "kind"} for number in range(40)]
    extra = [
        {"prompt": prompt(1)},
        {"conversations": [{"from": "human", "value": prompt(2)}, {"from": "gpt", "value": "an answer"}]},
        {"prompt": prompt(5) + " and so on"},
        {"messages": [{"role": "nobody", "content": "x"}]},
    ]
    files = {"a.jsonl": rows, "b.jsonl": extra}
    found, counts, told = prepare(tmp_path, files, str(tmp_path / "bench"), max_samples=30, bad_rows="drop")
    assert counts["dropped"] == {
        "benchmark": 1, "duplicate": 2, "max_samples": 9, "near_duplicate": 1, "wrong_roles": 1,
    }  # fmt: skip
    assert counts["read"] == 44 == counts["kept"] + sum(counts["dropped"].values())
    assert len(found) == counts["kept"] == 30 == sum(counts["splits"].values())
    assert list(told["examples"]) == ["wrong_roles"]
    assert told["examples"]["wrong_roles"][0].startswith("b:4: unknown role 'nobody' under 'role'")
    assert {row["source"] for row in found} <= {"kind", "b"}
    assert list(found[0]) == ["id", "split", "source", "messages"]
    assert found[0]["messages"][-1] == {"role": "assistant", "content": ""}


def test_a_row_keeps_its_id_and_split_among_others(tmp_path: Path) -> None:
    few = [{"prompt": prompt(number)} for number in range(50)]
    more = [{"prompt": prompt(number)} for number in reversed(range(100))]
    options: dict[str, Any] = {"splits": Splits(validation=0.3)}
    before = {row["id"]: row["split"] for row in prepare(tmp_path / "x", {"a.jsonl": few}, **options)[0]}
    after = {row["id"]: row["split"] for row in prepare(tmp_path / "y", {"z.jsonl.zst": more}, **options)[0]}
    assert len(before) == 50
    assert before.items() <= after.items()
    assert {"train", "validation"} <= set(before.values())


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()


def test_parts_hold_so_many_rows_and_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    files = {"a.jsonl": [{"prompt": prompt(number)} for number in range(25)]}
    for folder in ("x", "y"):
        prepare(tmp_path / folder, files, rows_per_file=10)
    first, second = (sorted((tmp_path / folder / "store").rglob("part-*")) for folder in ("x", "y"))
    assert [path.name for path in first] == [f"part-0000{number}.jsonl.zst" for number in range(3)]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_parquet_and_lines_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": prompt(number)}]} for number in range(5)]
    lines = prepare(tmp_path / "x", {"a.jsonl": rows})[0]
    (tmp_path / "a").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a" / "a.parquet")
    resolved = find_sources([str(tmp_path / "a")])
    assert run_spec(tmp_path / "y", PrepareSpec(sources=resolved.sources), resolved.locations)[0] == lines


def test_a_dataset_is_read_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    write_rows(tmp_path / "hub" / "train.jsonl", [{"prompt": prompt(1)}, {"prompt": prompt(2)}])
    spec = PrepareSpec(sources=(Source(digest="hub:c/d/train", name="chats"),))
    locations = {"hub:c/d/train": f"{HUB}{tmp_path}/hub?split=train"}
    assert [row["source"] for row in run_spec(tmp_path, spec, locations)[0]] == ["chats", "chats"]
    with pytest.raises(SourceError, match="cannot be loaded"):
        run_spec(tmp_path, spec, {"hub:c/d/train": f"{HUB}{tmp_path}/hub?split=nosuch"})


def test_a_dataset_of_mixed_types_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hub").mkdir()
    contents = [prompt(1), [{"type": "text", "text": prompt(2)}], [{"type": "image_url", "image_url": {"url": "x"}}]]
    rows = [{"messages": [{"role": "user", "content": content}]} for content in contents]
    write_rows(tmp_path / "hub" / "train.jsonl", rows)
    spec = PrepareSpec(sources=(Source(digest="hub:c/d/train", name="chats"),))
    found, counts, told = run_spec(tmp_path, spec, {"hub:c/d/train": f"{HUB}{tmp_path}/hub?split=train"})
    assert [row["messages"][0]["content"] for row in found] == [prompt(1), prompt(2)]
    assert counts["dropped"] == {"not_text": 1}
    assert told["examples"]["not_text"][0].startswith("chats:3: ")


def test_a_bad_row_stops_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"a\.jsonl:2: the conversation holds no message"):
        prepare(tmp_path, {"a.jsonl": [{"prompt": "x"}, {"messages": []}]}, bad_rows="stop")


def test_nothing_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no row is left: 1 rows read, 0 kept, dropped: 1 wrong_roles") as found:
        prepare(tmp_path, {"a.jsonl": [{"messages": [{"role": "x"}]}]}, bad_rows="drop")
    assert "a.jsonl:1: unknown role 'x'" in str(found.value)


def test_a_benchmark_whose_text_is_no_unicode_is_named(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "b.jsonl").write_text('{"turns": ["What is \\ud800 ?"]}\n')
    with pytest.raises(SourceError, match=r"b\.jsonl:1: wanted"):
        prepare(tmp_path, {"a.jsonl": [{"prompt": "x"}]}, str(tmp_path / "bench"))


def test_a_source_that_nobody_located_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="lies nowhere on this machine"):
        run_spec(tmp_path, PrepareSpec(sources=(Source(digest="xxh3:0", name="a"),)), {})


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    """10 MB of text are prepared in a third of that."""
    rows = ({"prompt": " ".join(random.Random(n).choices(WORDS, k=1000)) + str(n)} for n in range(1600))
    write_rows(tmp_path / "big.jsonl", rows)
    size = (tmp_path / "big.jsonl").stat().st_size
    resolved = find_sources([str(tmp_path / "big.jsonl")])
    spec = PrepareSpec(sources=resolved.sources, near_duplicates=None)
    tracemalloc.start()
    out = Out(Store(tmp_path / "store"), "prompts", "address", {}, tmp_path / "scratch")
    counts = run(spec, {}, out, Placement(locations=resolved.locations), Heard())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts["kept"] == 1600
    assert peak < size / 3

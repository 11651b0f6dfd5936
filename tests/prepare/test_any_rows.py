"""No row that anybody can write ends the preparation: it is counted, and the good ones beside it all stay."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepspec.errors import BadRowsError
from deepspec.lines.rows import read_rows
from deepspec.placement import Placement
from deepspec.prepare.resolve import find_sources
from deepspec.prepare.run import run
from deepspec.prepare.spec import PrepareSpec
from deepspec.publish import Out
from deepspec.store import Store
from tests.given import wild
from tests.given.heard import Heard

LINES = (
    (wild.ROWS | wild.ALMOST).map(lambda row: json.dumps(row).encode())
    | wild.ANY_JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=30).filter(lambda line: b"\n" not in line)
)
GOOD = b'{"prompt": "Which river is the longest of the world?", "source": "atlas"}'
BENCHMARK = b'{"turns": ["What are the names of the seven seas that sailors spoke of?"]}\n'


def prepare(folder: Path, lines: list[bytes], **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any], Heard]:
    """Run the stage on lines; return the prompts, the counts and what was heard."""
    (folder / "bench").mkdir()
    (folder / "bench" / "seas.jsonl").write_bytes(BENCHMARK)
    (folder / "rows.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    resolved = find_sources([str(folder / "rows.jsonl")], str(folder / "bench"))
    spec = PrepareSpec(sources=resolved.sources, benchmarks=resolved.benchmarks, **options)
    out, heard = Out(Store(folder / "store"), "prompts", "address", {}, folder / "scratch"), Heard()
    counts = run(spec, {}, out, Placement(locations=resolved.locations), heard)
    rows = [row for path in sorted(out.folder.glob("part-*")) for _, row in read_rows(path)]
    return rows, counts, heard


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINES, max_size=8), st.sampled_from([None, 0.8]))
@example([json.dumps(row).encode() for row in wild.KNOWN], None)
def test_no_input_row_ends_prepare(lines: list[bytes], near_duplicates: float | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows, counts, _ = prepare(Path(folder), [GOOD, *lines], bad_share=1.0, near_duplicates=near_duplicates)
    shown = [line for line in lines if line.removeprefix(b"\xef\xbb\xbf").strip()]
    assert counts["read"] == 1 + len(shown)
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert "unreadable" not in counts["dropped"], "every kind of bad row has its name"
    assert sum(row["source"] == "atlas" for row in rows) == 1


def bad(count: int) -> list[bytes]:
    return [b'{"messages": []}'] * count


def good(count: int) -> list[bytes]:
    return [json.dumps({"prompt": f"{number} is a number; name {number} rivers"}).encode() for number in range(count)]


def test_the_share_of_bad_rows_is_judged_whatever_their_order(tmp_path: Path) -> None:
    for number, lines in enumerate(([*bad(2), *good(38)], [*good(38), *bad(2)])):
        (tmp_path / f"kept-{number}").mkdir()
        _, counts, _ = prepare(tmp_path / f"kept-{number}", lines, near_duplicates=None)
        assert counts["dropped"] == {"empty_conversation": 2}
    for number, lines in enumerate(([*bad(3), *good(38)], [*good(38), *bad(3)])):
        (tmp_path / f"ended-{number}").mkdir()
        with pytest.raises(BadRowsError, match=r"3 of 41 rows \(7.3%\) cannot be used, and prepare.bad_share allows"):
            prepare(tmp_path / f"ended-{number}", lines, near_duplicates=None)


def test_duplicates_and_benchmark_prompts_are_no_bad_rows(tmp_path: Path) -> None:
    sea = b'{"prompt": "What are the names of the seven seas that sailors spoke of?"}'
    _, counts, heard = prepare(tmp_path, [GOOD] * 20 + [sea] * 20 + bad(2))
    assert counts["dropped"] == {"benchmark": 1, "duplicate": 38, "empty_conversation": 2}
    assert heard.lines[0] == "42 rows read, 1 kept, dropped: 38 duplicate, 2 empty_conversation, 1 benchmark"


def test_a_bad_row_is_shown_by_its_line_and_its_own_id(tmp_path: Path) -> None:
    lines = [*good(30), b'{"id": "chat-7", "messages": []}', *bad(40)]
    with pytest.raises(BadRowsError, match=r"rows\.jsonl:31: sample chat-7: the conversation holds no message"):
        prepare(tmp_path, lines)


def test_a_line_just_within_the_limit_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt that it becomes is longer than the line, and is read again."""
    line = b'{"prompt": "' + b"river stone " * 30 + b'"}'
    monkeypatch.setattr("deepspec.prepare.sources.LONGEST_LINE", len(line))
    rows, counts, _ = prepare(tmp_path, [line, GOOD, line[:-2] + b'x"}'])
    assert (len(rows), counts["dropped"]) == (2, {"too_long_line": 1})

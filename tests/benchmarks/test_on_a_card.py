"""How a visit to a card is cut to its minutes, and what is kept of parts that fail."""

import time
from pathlib import Path

import pytest

from tests.benchmarks import on_a_card
from tests.benchmarks.on_a_card import PARTS, Part, fitting, main, share, wrong


def test_what_is_worth_most_stays_where_there_is_not_time_for_all() -> None:
    assert fitting(list(PARTS), 14 * 60) == ["steps", "tests", "decoding", "capture"]  # 300 + 180 + 90 + 90 of 840
    assert fitting(list(PARTS), 6 * 60) == ["steps"]  # and 60 s are left, in which no other tells anything
    assert share("steps", ["tests", "decoding", "capture"], 840) == 840 - 360
    assert share("capture", [], 1000) == PARTS["capture"].limit


def test_a_test_that_failed_is_named_once_also_where_pytest_came_to_no_summary() -> None:
    lines = ["tests/a.py::test_x[one two] FAILED", "tests/a.py::test_y PASSED", "FAILED tests/a.py::test_z - assert"]
    assert wrong([*lines, "FAILED tests/a.py::test_z - assert"]) == [
        "tests/a.py::test_x[one two]",
        "tests/a.py::test_z",
    ]


def test_a_part_that_is_ended_takes_its_processes_along_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    slow = f"import subprocess, sys, time; print('begun'); subprocess.Popen([sys.executable, '-c', {child!r}]); "
    parts = {
        "slow": Part(("-c", slow + "time.sleep(60)"), 1, 1),
        "quick": Part(("-c", "import os; print(os.environ['HASTE'])"), 60, 20, in_haste={"HASTE": "in haste"}),
        "long": Part(("-c", ""), 60, 600),
    }
    monkeypatch.setattr(on_a_card, "PARTS", parts)
    begin = time.monotonic()
    assert main(tmp_path, [], minutes=1) == 1
    told = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split()[0] for line in told] == ["slow", "quick", "long"]
    assert "ended after 1 s" in told[0]
    assert "exit 0: in haste" in told[1]
    assert "left out" in told[2]
    time.sleep(max(0.0, 4 - (time.monotonic() - begin)))
    assert not mark.exists()
    assert main(tmp_path, ["what"]) == 2

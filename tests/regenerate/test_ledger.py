"""The ledger holds what was finished, whatever tore its end."""

import resource
from pathlib import Path
from typing import cast

import pytest

from deepspec.errors import AnswersError, StoreError
from deepspec.messages.conversations import AnswerRow
from deepspec.regenerate.ledger import Ledger, lock_folder


def row(sample_id: str, text: str = "fine") -> AnswerRow:
    message = {"role": "assistant", "content": text}
    return cast(AnswerRow, {"id": sample_id, "messages": [message], "status": "success"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "part.jsonl"


def write(path: Path, *rows: AnswerRow) -> None:
    ledger = Ledger(path)
    for each in rows:
        ledger.append(each)
    ledger.close()


def test_rows_come_back_after_reopening(path: Path) -> None:
    write(path, row("a"), row("b", "line\u2028separator"))
    ledger = Ledger(path)
    assert len(ledger) == 2
    assert "a" in ledger
    assert "c" not in ledger
    assert ledger.read("b") == row("b", "line\u2028separator")


def test_a_row_survives_a_kill_as_soon_as_it_is_noted(path: Path) -> None:
    unclosed = Ledger(path)
    unclosed.append(row("a"))
    assert "a" in Ledger(path)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_cut_off_and_the_next_row_starts_clean(path: Path, cut: int) -> None:
    write(path, row("a"), row("b"))
    path.write_bytes(path.read_bytes()[:-cut])
    ledger = Ledger(path)
    assert "a" in ledger
    assert "b" not in ledger
    ledger.append(row("c"))
    ledger.close()
    again = Ledger(path)
    assert [again.read(name)["id"] for name in ("a", "c")] == ["a", "c"]


def test_rubbish_left_by_a_power_cut_is_cut_off(path: Path) -> None:
    write(path, row("a"))
    with path.open("ab") as file:
        file.write(b"\0" * 100 + b"\n" + b'{"half": true}\n')
    assert len(Ledger(path)) == 1
    assert path.read_bytes().endswith(b"}\n")


def test_an_error_that_can_pass_is_asked_again_by_the_next_run(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(row("a"), can_pass=True)
    assert "a" in ledger
    ledger.close()
    assert "a" not in Ledger(path)


def test_a_full_disk_is_an_error_that_loses_no_row_before_it(path: Path) -> None:
    """The limit on the size of files stands for the disk: the write fails half-way through a row."""
    write(path, row("a"))
    ledger = Ledger(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, hard))
    try:
        with pytest.raises(StoreError, match=r"part.jsonl: cannot be written .*free some space and run again"):
            ledger.append(row("b", "x" * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        ledger.close()
    again = Ledger(path)
    assert "a" in again
    assert "b" not in again
    again.append(row("b"))
    assert again.read("b") == row("b")


def test_a_folder_of_ledgers_has_one_writer(tmp_path: Path) -> None:
    held = lock_folder(tmp_path)
    with pytest.raises(AnswersError, match="another process regenerates the same answers"):
        lock_folder(tmp_path)
    held.close()
    lock_folder(tmp_path).close()

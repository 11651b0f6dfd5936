"""One bad row costs one row; what is not a row's ends the stage."""

import asyncio

import pytest
import torch
from jinja2 import TemplateError, TemplateNotFound

from deepspec.errors import BadRowsError, CancelledError, RowError, SourceError, StoreError, TargetError
from deepspec.lines.bad_rows import BadRows, one_row, rows_told


class PanicException(BaseException):
    """Stands for the class of that name in tokenizers."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), TypeError("x"), KeyError("x"), IndexError("x"), AttributeError("x"), RecursionError("x"),
        OverflowError("x"), UnicodeError("x"), TemplateError("x"), TemplateNotFound("x"), ZeroDivisionError("x"),
        Exception("tokenizers raises it"), PanicException("x"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_of_one_row_is_counted_as_its_own(error: BaseException) -> None:
    with pytest.raises(RowError) as found, one_row("template_refuses", "a.jsonl", 7, sample="s1"):
        raise error
    assert found.value.reason == "template_refuses"
    assert str(found.value).startswith("a.jsonl:7: sample s1: ")


@pytest.mark.parametrize(
    "error",
    [
        StoreError("x"), SourceError("cut off"), TargetError("x"), CancelledError("x"), OSError(28, "No space left"),
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: device-side assert"),
        KeyboardInterrupt(), asyncio.CancelledError(), SystemExit(1),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_that_is_no_rows_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as found, one_row("template_refuses", "a.jsonl", 7):
        raise error
    assert found.value is error


def test_a_row_error_keeps_its_reason_and_learns_where_it_was() -> None:
    with pytest.raises(RowError, match=r"^a\.jsonl:7: sample s1: no text") as found, one_row("x", "a.jsonl", 7, "s1"):
        raise RowError("not_text", "no text")
    assert found.value.reason == "not_text"


def test_of_few_rows_none_is_judged() -> None:
    rows = BadRows(0.05, "prepare.bad_share")
    rows.add(19)
    for _ in range(19):
        rows.drop(RowError("not_json", "x"))
    rows.check()


def test_one_in_twenty_is_allowed_and_two_are_not() -> None:
    rows = BadRows(0.05, "prepare.bad_share")
    rows.add(20)
    rows.drop(RowError("not_json", "a.jsonl:3: torn"))
    rows.check()
    rows.drop(RowError("bad_tools", "a.jsonl:9: no name"))
    with pytest.raises(BadRowsError) as found:
        rows.check()
    message = str(found.value)
    assert "2 of 20 rows (10.0%) cannot be used, and prepare.bad_share allows 0.05 of them" in message
    assert "not_json" in message
    assert "a.jsonl:9: no name" in message
    assert "--set prepare.bad_share=" in message


def test_the_first_rows_end_a_stage_only_where_chance_does_not_explain_them() -> None:
    rows = BadRows(0.05, "prepare.bad_share")
    rows.add(20)  # 1 is allowed, and 3 deviations of sqrt(20 * 0.05 * 0.95) = 0.975 more: 3.92
    for _ in range(3):
        rows.drop(RowError("not_json", "x"))
    rows.check_so_far()
    rows.drop(RowError("not_json", "x"))
    with pytest.raises(BadRowsError, match="4 of 20 rows"):
        rows.check_so_far()


def test_rows_are_told_in_one_line() -> None:
    assert rows_told(10, 7, {"duplicate": 2, "not_text": 1, "limit": 0}) == (
        "10 rows read, 7 kept, dropped: 2 duplicate, 1 not_text"
    )
    assert rows_told(3, 3, {}) == "3 rows read, 3 kept"

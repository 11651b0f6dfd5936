"""What a stage says reaches the terminal and the server: its last lines always, of a fresh artifact none."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from deepspec.placement import Placement
from deepspec.prepare.resolve import find_sources
from deepspec.prepare.spec import PrepareSpec
from infra import terminal
from infra.listeners import attached
from infra.site import Site
from tasks import perform, report
from tasks.report import LAST, LINES, PrefectReport


class Server(logging.Handler):
    """Stands for the log of a run on the server."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found, logger = Server(), logging.Logger("run")
    logger.addHandler(found)
    monkeypatch.setattr(report, "get_run_logger", lambda: logger)
    monkeypatch.setattr(PrefectReport, "_show", lambda self, key, artifact: None)
    return found


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "_out", Console(file=out, width=400, highlight=False, markup=False, emoji=False))
    return out


def test_lines_of_a_stage_are_on_the_terminal_and_in_the_servers_log_and_a_fresh_one_is_silent(
    tmp_path: Path, server: Server, screen: io.StringIO
) -> None:
    rows = [{"prompt": "What is two plus two?"}, {"messages": [{"role": "[/INST]", "content": "x"}]}]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = find_sources([str(tmp_path / "rows.jsonl")])
    site = Site(
        root=str(tmp_path / "store"),
        placement=Placement(scratch=tmp_path / "scratch", locations=dict(found.locations)),
    )
    spec = PrepareSpec(sources=found.sources)
    with attached():
        ref = perform.perform("prepare", spec, {}, site)
    assert server.lines[-1] == ref.uri
    printed = [line.strip() for line in screen.getvalue().splitlines()]
    for line in server.lines:
        assert f"prepare {line}" in printed
    server.lines.clear()
    screen.truncate(0)
    with attached():
        assert perform.perform("prepare", spec, {}, site) == ref
    assert server.lines == []
    assert screen.getvalue().strip("\0\n") == ""


def test_the_last_lines_of_a_stage_are_logged_however_many_came_before(server: Server) -> None:
    told = PrefectReport("train")
    for number in range(LINES + 50):
        told.log(f"line {number}")
    assert server.lines == [f"line {number}" for number in range(LINES)]
    told.log("12 rows read, 11 kept, dropped: 1 unknown_role")
    told.end()
    assert server.lines[LINES:] == [*(f"line {LINES + 50 - n}" for n in range(LAST - 1, 0, -1)), (
        "12 rows read, 11 kept, dropped: 1 unknown_role"
    )]  # fmt: skip
    told.end()
    assert len(server.lines) == LINES + LAST


def test_percent_signs_and_braces_in_a_line_mean_nothing(server: Server) -> None:
    told = PrefectReport("train")
    told.log("100 %s {0} [/x] %(name)s")
    assert server.lines == ["100 %s {0} [/x] %(name)s"]


def test_a_picture_does_not_take_the_place_of_the_table_of_the_same_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The UI reads an artifact by its first type: a table whose data is a picture shows no row."""
    shown: dict[str, str] = {}
    monkeypatch.setattr(
        PrefectReport, "_show", lambda self, key, artifact: shown.update({key: type(artifact).__name__})
    )
    told = PrefectReport("benchmark")
    told.table("speed", [{"batch": 1}])
    told.figure("speed", b"png")
    assert shown == {"speed": "TableArtifact", "speed-picture": "ImageArtifact"}

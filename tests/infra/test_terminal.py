"""What is printed is what was meant: no text is read as markup, emoji code or control sequence, on any way out."""

import io
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from cli import main as cli
from infra import terminal
from infra.listeners import attached
from infra.listeners import terminal as reports
from infra.terminal import Styled, bars, complain, say, show_table, shown

EXAMPLES = (
    "[/INST]", "[bold]x[/bold]", "closing tag '[/docs]'", "[type=value_error] see [/docs]", "\\[bold]", "[red",
    ":smile:", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\rb", "100% [x] {0} {task.fields[note]}", "deepspec[s3]",
    "\ud800", "\u202etxt.exe", "two\nlines", "[link=http://x]y[/link]", "Ünï côdé ↑", "[@click=quit]x[/]", "%s %d", "",
)  # fmt: skip
TEXTS = st.text(st.characters(exclude_characters="\t"), max_size=60) | st.sampled_from(EXAMPLES)
CHECKED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(params=[False, True], ids=["file", "screen"])
def printed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Give what was printed since it was last asked for, on a wide screen or into a file."""
    out = io.StringIO()
    for name in ("_out", "_errors"):
        console = Console(
            file=out,
            width=5000,
            force_terminal=request.param,
            no_color=True,
            highlight=False,
            markup=False,
            emoji=False,
        )
        monkeypatch.setattr(terminal, name, console)

    def taken() -> str:
        text = out.getvalue()
        out.seek(0)
        out.truncate()
        return text

    return taken


def in_lines(text: str) -> list[str]:
    """Return what must be found of a text where boxes and bars stand around it."""
    return [line.rstrip() for line in shown(text).split("\n")]


@given(text=TEXTS)
@CHECKED
def test_a_line_is_printed_as_it_was_meant(printed: Callable[[], str], text: str) -> None:
    say(text)
    assert printed() == f"{shown(text)}\n"
    complain(text, f" {text}")
    assert printed() == f"{shown(text)} {shown(text)}\n"


@given(text=TEXTS)
@CHECKED
def test_title_header_and_cell_are_printed_as_they_were_meant(printed: Callable[[], str], text: str) -> None:
    show_table(text, [{"before": 0.123456, text: Styled(text, "bold"), "after": text}])
    found = printed()
    assert "0.1235" in found
    for line in in_lines(text):
        assert found.count(line) >= 3


@given(text=TEXTS)
@CHECKED
def test_what_a_stage_says_is_printed_as_it_was_meant(printed: Callable[[], str], text: str) -> None:
    with attached():
        (report,) = reports("train")
        report.log(text)
        report.progress(1, 2, text, note=text)
        report.progress(2, 2, "samples", note=text)
    found = printed()
    for line in in_lines(text):
        assert found.count(line) >= 2, "the line, and the note of a bar"


@given(text=st.text())
@example("".join(map(chr, range(256))))
def test_no_character_that_is_printed_is_unseen(text: str) -> None:
    hidden = [sign for sign in shown(text) if sign not in "\n\t" and not sign.isprintable() and sign.isascii()]
    assert hidden == []
    assert shown(shown(text)) == shown(text)
    shown(text).encode()


def test_plain_text_is_left_as_it_is() -> None:
    for text in ("deepspec[s3]", "Ünï côdé ↑ 漢字", "👩‍👩‍👧", "a\tb\nc", "[bold]"):
        assert shown(text) == text
    assert shown("\x1b[31m\r\u202e\ud800") == r"\x1b[31m\r\u202e\ud800"


def test_styles_are_said_beside_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "_out", Console(file=out, force_terminal=True, color_system="standard"))
    say(Styled("worse:", "bold red"), " [bold]x")
    assert out.getvalue() == "\x1b[1;31mworse:\x1b[0m [bold]x\n"


def test_a_table_has_the_columns_of_all_its_rows(printed: Callable[[], str]) -> None:
    show_table("leaderboard", [{"variant": "one"}, {"variant": "two", "round cost": 1.1}])
    found = printed()
    assert "round cost" in found
    assert "1.1" in found


@pytest.mark.parametrize("printed", [False], indirect=True, ids=["file"])
def test_a_bar_in_a_file_that_stands_still_is_a_line_every_few_minutes(
    printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with bars() as drawn:
        bar = drawn.add("prepare", 1, "sources", "")
        for now in (0.0, 100.0, 299.0, 301.0, 400.0, 602.0):
            drawn.move(bar, 0, 1, "sources", f"after {now:g} s")
    said = printed()
    assert [line.split("; ")[1] for line in said.splitlines()] == ["after 0 s", "after 301 s", "after 602 s"]


def test_bars_without_rows_show_only_columns(printed: Callable[[], str]) -> None:
    show_table("runs", [], ("run", "state"))
    assert "run" in printed()
    with bars():
        pass


@pytest.mark.parametrize("text", ["[/x]", "[bold]x", ":smile:"])
def test_an_error_of_the_tree_is_printed_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setattr("sys.argv", ["deepspec", "plan", "--dataset", text])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"error: unknown dataset preset '{text}'; known: demo" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[/x]", "[bold]x", ":smile:"])
def test_a_usage_error_is_printed_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    monkeypatch.setattr("sys.argv", ["deepspec", "plan", f"--x{text}"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"No such option: --x{text}" in capsys.readouterr().err

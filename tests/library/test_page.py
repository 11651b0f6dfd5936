"""Reports say what was meant: whatever a text holds, neither markdown nor HTML reads markup in it."""

from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from deepspec.page.page import Section, code, html, markdown, paragraph, plain, table
from tasks.report import as_shown

HARD = (
    "a | b", "`x`", "``", "<script>alert(1)</script>", "**bold**", "__x__", "snake_case_", "[a](http://x)", "![a](b)",
    "# heading", "- item", "1. item", "2) item", "> quote", "---", "===", "&lt;", "\\", "\\|", "~~x~~", "$x$",
    ":smile:", "<!-- -->", "a\nb", "a  \nb", "    code", "+ x", "*", "_", "|", "<http://x.y>", "^x^", "x\x00y",
    "a\\\nb", "[^1]",
)  # fmt: skip
TEXTS = st.text(max_size=40) | st.sampled_from(HARD) | st.text("|`*_[]<>#&\\~-+=1.)>! \nab:$", max_size=30)
PLAIN_INLINE = {"text", "softbreak"}


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def words(text: str) -> str:
    """Return a text as HTML shows it: runs of white space are one space, and what CommonMark may not hold is gone."""
    return " ".join(text.replace("\x00", "\ufffd").split())


def inline(text: str) -> list[str]:
    """Return the texts of a markdown document, which must hold nothing but text."""
    found = []
    for token in tokens(text):
        for child in token.children or ():
            assert child.type in PLAIN_INLINE, child
        if token.type == "inline":
            found.append(words("".join(child.content or " " for child in token.children or ())))
    return found


@given(text=TEXTS)
def test_a_paragraph_is_one_paragraph_of_that_text(text: str) -> None:
    kinds = {token.type for token in tokens(paragraph(text))}
    assert kinds <= {"paragraph_open", "inline", "paragraph_close"}
    assert inline(paragraph(text)) == ([words(text)] if words(text) else [])


@given(title=TEXTS, cell=TEXTS, head=TEXTS)
@example(title="x", cell="a | b", head="c | d")
def test_a_table_has_the_cells_that_it_was_given(title: str, cell: str, head: str) -> None:
    rows: list[dict[str, Any]] = [{"first": cell, f"x{head}": "y"}, {"first": "z", f"x{head}": 1}]
    document = markdown(f"t {title}", [f"w {cell}"], [Section(title=f"s {head}", texts=[cell], rows=rows)])
    cells = [token.type for token in tokens(document) if token.type in ("th_open", "td_open")]
    assert cells == ["th_open"] * 2 + ["td_open"] * 4
    (body,) = [inline(table(rows))]
    assert body == [each for each in ["first", words(f"x{head}"), words(cell), "y", "z", "1"]]


@given(text=TEXTS.filter(lambda text: bool(words(text))))
def test_code_shows_the_text_as_it_is(text: str) -> None:
    (block,) = [token for token in tokens(f"see {code(text)} there") if token.type == "inline"]
    kinds = [child.type for child in block.children or ()]
    assert kinds == ["text", "code_inline", "text"]
    assert words((block.children or [])[1].content) == words(text)


class Shown(HTMLParser):
    """Collects what a page shows, and which tags it has."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shown(text: str) -> Shown:
    rows = [{"a": text, text: "b"}]
    figures = {text: b"png"}
    parser = Shown()
    parser.feed(html(text, [text], [Section(title=text, texts=[text], rows=rows, figures=figures)]))
    return parser


@given(text=TEXTS)
def test_a_page_shows_every_text_and_has_no_tag_of_it(text: str) -> None:
    if text in ("", "a"):
        return
    assert shown(text).tags == shown("plain").tags
    said = "".join(shown(text).text)
    assert said.count(text) >= 5


@pytest.mark.parametrize("text", HARD)
def test_cells_in_the_ui_of_prefect_are_escaped_and_numbers_are_left(text: str) -> None:
    (row,) = as_shown([{"text": text, "number": 1.5, "nothing": None}])
    assert row == {"text": plain(text), "number": 1.5, "nothing": None}


def test_readable_text_stays_readable() -> None:
    for text in (
        "tau_deepspec",
        "95 % interval",
        "accepted length (with bonus)",
        "draft/0123abc",
        "1.5 to 2.0",
        "a, b; c",
    ):
        assert plain(text) == text
    assert paragraph("1.5 to 2.0") == "1\\.5 to 2.0"

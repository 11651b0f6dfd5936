"""Reasoning that stands inside an answer is seen; an answer that speaks of its marks is not taken for one."""

import subprocess
import sys

import pytest

from deepspec.messages.thinking import MARKERS, holds_reasoning


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_a_block_of_every_kind_is_seen_whole_cut_off_and_without_its_opening_mark(opening: str, closing: str) -> None:
    assert holds_reasoning(f"{opening}\nTwo and two.\n{closing}\n\nFour.")
    assert holds_reasoning(f"\n {opening}\nTwo and")
    assert holds_reasoning(f"Two and two.\n{closing}\n\nFour.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Four.",
        "I think it is four.",
        "Put <think> before and </think> behind it.",
        "The mark `</think>` ends it.",
        'It is "</thinking>".',
        "a < think > b",
    ],
)
def test_an_answer_that_speaks_of_thinking_is_none(text: str) -> None:
    assert not holds_reasoning(text)


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, deepspec.messages.thinking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

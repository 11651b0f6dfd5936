"""Every decoder-only type of the installed transformers: what works, what does not, and why. Makes docs/targets.md.

python -m tests.target.test_breadth [TYPE …]     writes the table anew, or the rows of some types
"""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import transformers

from deepspec.kv.memory import ReadingWay
from tests.given.targets import zoo, zoo_images
from tests.target.breadth import Found, examine

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"
MARK = "<!-- written by tests/target/test_breadth.py -->"
HEAD = "| type | read | loss | decoding | forms of drafts | why not |\n|---|---|---|---|---|---|"
SAMPLED = (
    "cohere",  # a factor on logits
    "deepseek_v3",  # latent attention, experts
    "falcon_h1",  # state space beside attention, factors on both ends
    "gemma2",  # softcaps, two kinds of layers, a scaled embedding
    "gpt2",  # learned positions, names of its own
    "mamba",  # state space alone
    "mistral",  # one window for all layers
    "mixtral",  # experts
    "qwen2",  # biases
    "qwen3_next",  # linear attention and full attention in turn
    "smollm3",  # layers without rope
    "phi",  # a head with a bias
    "gemma3",  # text of a model that sees images: a family's
    "qwen2_5_vl",  # positions of three parts
)
SEEING = (
    "**Text of models that see images**: the same of a sample of them, each a tiny random model with its vision part, "
    "loaded whole. Positions of three parts (mrope) are one and the same number in text. A conversation that holds an "
    "image is refused and counted (`not_text`)."
)
IMAGES = frozenset(zoo_images.TYPES)
ALL = tuple(dict.fromkeys((*zoo.TYPES, *zoo_images.TYPES)))
PROVEN, LOSSLESS = 90, 80
"""Fewest types that are proven and learn, and that decode without loss."""


def rows() -> Mapping[str, str]:
    """Return type -> row, as the page has them."""
    lines = PAGE.read_text(encoding="utf-8").partition(MARK)[2].splitlines()
    found = (re.match(r"\| `([^`]+)` \|", line) for line in lines)
    return {each[1]: each.string for each in found if each is not None}


def page(found: Iterable[str]) -> str:
    """Return the page with these rows: text models, and text of models that see images, in a table each."""
    before, found = PAGE.read_text(encoding="utf-8").partition(MARK)[0], sorted(found)
    images = [row for row in found if row.split("`")[1] in IMAGES]
    texts = [row for row in found if row not in images]
    tables = f"{counted(texts)}\n\n{HEAD}\n" + "\n".join(texts)
    seeing = f"{SEEING}\n\n{HEAD}\n" + "\n".join(images)
    return f"{before}{MARK}\n\n{tables}\n\n{seeing}\n"


def counted(found: Iterable[str]) -> str:
    """Return in words how many types do what."""
    told = [row.split(" | ") for row in found]
    proven = sum(bool(cells[1].strip()) for cells in told)
    lossless = sum(cells[3].strip() in get_args(ReadingWay) for cells in told)
    return (
        f"transformers {transformers.__version__}: {len(told)} types; {proven} are read rightly and taught, {lossless} "
        f"decoded without loss, {len(told) - proven} refused or not examined."
    )


def check(found: Found) -> None:
    """Check that nothing is wrong in silence: what is read is read rightly, and what is not says why."""
    assert bool(found.proof) != bool(found.reason), found
    if found.proof:
        assert found.learns, found.losses
        assert found.lossless, found
        assert "deepspec" in found.forms


@pytest.mark.parametrize("model_type", SAMPLED)
def test_a_type_does_what_the_page_says(model_type: str) -> None:
    found = examine(model_type)
    check(found)
    assert found.row == rows()[model_type]


@pytest.fixture
def of_the_page() -> None:
    """Skip where another transformers than the lock's is installed, which has other types than the page."""
    if f"transformers=={transformers.__version__}" not in zoo.LOCK:
        pytest.skip(f"the page is of the lock's transformers, installed is {transformers.__version__}")


@pytest.mark.usefixtures("of_the_page")
def test_the_page_has_every_type() -> None:
    assert set(rows()) == {*zoo.TYPES, *zoo_images.TYPES}


@pytest.mark.usefixtures("of_the_page")
def test_the_page_counts_what_it_has() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(rows().values()) == text


@pytest.mark.soak
def test_every_type_does_what_the_page_says() -> None:
    found = {model_type: examine(model_type) for model_type in ALL}
    for each in found.values():
        check(each)
    assert {name: each.row for name, each in found.items()} == dict(rows())
    assert sum(each.learns for each in found.values()) >= PROVEN
    assert sum(each.lossless for each in found.values()) >= LOSSLESS


def main(asked: list[str]) -> None:
    """Write the page."""
    known = dict(rows()) if asked else {}
    for model_type in asked or ALL:
        found = examine(model_type)
        known[model_type] = found.row
        print(found.row, flush=True)
    PAGE.write_text(page(known.values()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

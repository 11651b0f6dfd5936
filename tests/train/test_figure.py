"""The learning curve: what its axes and legends say."""

from typing import Any

import pytest

from deepspec.watch.figure import curves, learning_curve
from tests.given.some import some

LOOK = {"split": "validation", "loss": 3.5, "tau": 2.0, "tau_greedy": 1.9}
LENGTHS = {f"accepted_length_greedy{end}": value for end, value in (("", 1.5), ("_low", 1.4), ("_high", 1.6))}


def rows(**look: Any) -> list[dict[str, Any]]:
    return [
        {"split": "train", "step": 1, "loss": 6.0},
        {"split": "train", "step": 2, "loss": 3.0},
        {"step": 2, **LOOK, **look},
    ]


def legends(given: list[dict[str, Any]]) -> list[list[str]]:
    return [[each.get_text() for each in some(axes.get_legend()).get_texts()] for axes in curves(given).axes]


def test_what_is_drawn_is_called_as_the_docs_call_it() -> None:
    found = curves(rows(**LENGTHS))
    assert [axes.get_ylabel() for axes in found.axes] == ["loss", "accepted length, bonus token included"]
    assert legends(rows(**LENGTHS)) == [
        ["training, smoothed", "held out"],
        ["greedily", "random blocks, by chances", "random blocks, greedily"],
    ]


def test_what_was_not_measured_is_in_no_legend() -> None:
    given = rows(**LENGTHS)
    del given[-1]["tau"], given[-1]["tau_greedy"]
    assert legends(given)[1] == ["greedily"]


@pytest.mark.filterwarnings("error")
def test_without_held_out_samples_there_are_no_lengths() -> None:
    found = curves(rows()[:2])
    assert [axes.get_ylabel() for axes in found.axes] == ["loss"]
    assert legends(rows()[:2]) == [["training, smoothed"]]


def test_ticks_of_a_loss_are_numbers() -> None:
    """Between 3 and 6 lies no power of ten: what is seen are the ticks between."""
    losses, _ = (found := curves(rows())).axes
    found.canvas.draw()
    shown = [each.get_text() for each in losses.get_yticklabels(which="both") if each.get_text()]
    assert {"3", "4", "6"} <= set(shown)


def test_the_same_rows_give_the_same_bytes() -> None:
    assert learning_curve(rows()) == learning_curve(rows())
    assert learning_curve(rows()) != learning_curve(rows(loss=3.4))

"""The tutorial keeps its word: its first half can be run, and figures outside of its table are told."""

from pathlib import Path

import pytest

from docs.tutorial import PAGE, Figure, commands, figures, held, main, value_at

STATUS = {
    "artifacts": [
        {"kind": "scores", "state": "published", "finished": "2026-01-01", "counts": {"accepted_length": {"0.0": 1.2}}},
        {"kind": "scores", "state": "published", "finished": "2026-01-02", "counts": {"accepted_length": {"0.0": 1.5}}},
        {"kind": "scores", "state": "partial", "finished": None, "counts": None},
    ]
}
TEXT = """
```sh
deepspec run
```
| length | `scores/accepted_length/0.0` | 1.3 | – |

# The second half

```sh
deepspec up
```
"""


def test_the_first_half_is_run_and_the_second_is_not() -> None:
    assert commands(TEXT) == ["deepspec run\n"]
    told = "".join(commands(PAGE.read_text()))
    assert "deepspec run\n" in told
    assert "infra.engines.llama_cpp" in told
    assert "vllm serve" not in told


def test_a_figure_is_that_of_the_newest_artifact_of_its_kind() -> None:
    assert value_at("scores/accepted_length/0.0", STATUS) == 1.5
    assert figures(TEXT) == [Figure(what="length", path="scores/accepted_length/0.0", low=1.3, high=None)]
    assert list(held(TEXT, STATUS)) == ["ok      length: 1.500, wanted 1.3 to None"]


def test_a_figure_outside_of_its_bounds_is_told() -> None:
    figure = Figure(what="length", path="", low=1.3, high=2.0)
    assert [figure.check(value).split()[0] for value in (1.29, 1.3, 2.0, 2.01)] == ["OUTSIDE", "ok", "ok", "OUTSIDE"]


def test_the_page_has_its_figures() -> None:
    assert {figure.path.split("/")[0] for figure in figures(PAGE.read_text())} == {
        "answers",
        "target_cache",
        "scores",
        "speed",
    }


@pytest.mark.soak
@pytest.mark.timeout(2700)
def test_the_first_half_of_the_tutorial_comes_out_as_it_says(tmp_path: Path) -> None:
    assert main(tmp_path) == 0

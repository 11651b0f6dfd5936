"""--profile keeps a trace of three steps beside the logs, and changes nothing else."""

import gzip
import json
from typing import Any, NoReturn

import pytest

from deepspec.errors import StoreError
from deepspec.watch import trace
from tests.given.heard import Heard
from tests.given.published.site import SMALL, Site


def steps_in(events: list[dict[str, Any]]) -> list[str]:
    """Return the steps that a trace marks, in order."""
    marks = {event["name"]: event["ts"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    return sorted(marks, key=marks.__getitem__)


def trace_of(site: Site, heard: Heard) -> list[dict[str, Any]]:
    """Return the events of the trace that a run told of."""
    (line,) = [line for line in heard.lines if line.startswith("--profile: a trace of 3 steps lies at ")]
    path = line.partition(" lies at ")[2].partition(" (open")[0].removeprefix("file://")
    assert path.startswith(f"{site.store.uri('logs/train-')}".removeprefix("file://"))
    with gzip.open(path) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return events


@pytest.mark.parametrize(("steps", "wanted"), [(8, [4, 5, 6]), (5, [2, 3, 4]), (4, [1, 2, 3])])
def test_a_trace_is_of_three_steps_after_four_warm_ones_or_as_many_as_there_are(
    site: Site, steps: int, wanted: list[int]
) -> None:
    heard = Heard()
    site.train(SMALL.but(steps=steps), f"traced-{steps}", heard, profile=True)
    events = trace_of(site, heard)
    assert steps_in(events) == [f"ProfilerStep#{number}" for number in wanted]
    assert sum(event.get("name") == "aten::_fused_adamw_" for event in events) == 3


def test_a_traced_run_publishes_the_same_bytes(site: Site) -> None:
    traced, _ = site.train(SMALL, "with-trace", profile=True)
    plain, _ = site.train(SMALL, "without-trace")
    assert site.checksums(traced) == site.checksums(plain)


def test_a_run_with_too_few_steps_for_a_trace_says_so(site: Site) -> None:
    heard = Heard()
    site.train(SMALL.but(steps=3), "too-short", heard, profile=True)
    assert "--profile: no trace: steps left: 3; wanted: at least 4, of which one warms up" in heard.lines


def test_a_trace_that_cannot_be_written_ends_no_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise StoreError("the disk is full")

    monkeypatch.setattr(trace, "_export", refuse)
    heard = Heard()
    _, counts = site.train(SMALL, "unwritten", heard, profile=True)
    assert counts["steps"] == 8
    assert "--profile: no trace: the disk is full" in heard.lines

"""Several ranks train on states as engines make them: each asks for its own samples, and the draft is that of one."""

import json
from typing import Any

import pytest

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact
from tests.given.engines.bench import Bench
from tests.given.engines.states import Served, serving
from tests.given.engines.training import SPEC, tokens_of
from tests.given.published.caches import placement_for, publish_answers, rows
from tests.given.published.launched import Launched
from tests.given.published.site import Site

TOLD = SPEC.but(steps=6, global_batch=6)


def site_of(bench: Bench, cache: Artifact, name: str, *engines: Served) -> Site:
    """Return where a run works, with a scratch of its own, so that nothing which it kept is found by another."""
    asked = tuple(each.endpoint for each in engines)
    place = placement_for(bench.target, bench.folder / name, micro_batch=2, endpoints=asked)
    return Site(root=bench.folder, store=bench.store, cache=cache, placement=place)


def losses(bench: Bench, ref: ArtifactRef) -> list[dict[str, Any]]:
    lines = open_artifact(bench.store, ref, bench.folder).read_bytes("metrics.jsonl").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("keep", [pytest.param("0GB", marks=pytest.mark.soak), "1GB"])
def test_two_ranks_give_the_losses_of_one(bench: Bench, keep: str) -> None:
    told = rows(19)
    bench.answers = publish_answers(bench.store, bench.folder, [told[:10], told[10:]], address="b")
    cache, spec = tokens_of(bench), TOLD.but(keep_states=keep)
    with serving(bench.served()) as first, serving(bench.served()) as second:
        alone, _ = site_of(bench, cache, "one", first).train(spec, "one")
        before = len(first.asked) + len(second.asked)
        launched = Launched(site_of(bench, cache, "two", first, second), "two", spec, ranks=2)
        together = launched.published()
        asked = len(first.asked) + len(second.asked) - before
    assert bench.left() == []
    for one, two in zip(losses(bench, alone), losses(bench, together), strict=True):
        assert (one.pop("split"), one["step"]) == (two.pop("split"), two["step"])
        assert two == pytest.approx(one, rel=1e-5), one["step"]
    probes = 2 * 2 * 3  # each rank proves each engine
    if keep == "1GB":  # both keep in one folder: at most what both ask for at the same moment is asked for twice
        assert 19 <= asked - probes <= 19 * 2
    assert "states of engines" in launched.log()

"""Several real processes: equal results, blows of every kind, and nobody left behind."""

import json
import random
import signal
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepspec.artifacts import ArtifactRef, open_artifact
from deepspec.errors import EXIT_CANCELLED, CancelledError, DeepSpecError, StoreError
from deepspec.start.fresh import empty_draft, fresh_draft
from deepspec.steps.ranks import Ranks
from deepspec.target_cache.cache import TargetCache
from deepspec.target_cache.split import CacheSplit
from tests.given.heard import Heard
from tests.given.published.launched import Launched
from tests.given.published.site import SMALL, Site

SPEC = SMALL.but(steps=20, global_batch=6, checkpoint_every=3)
REST = 0.05
"""Seconds between steps, so that a blow lands near the step that it is meant for."""


def rows(site: Site, ref: ArtifactRef) -> list[dict[str, Any]]:
    lines = open_artifact(site.store, ref, site.placement.scratch).read_bytes("metrics.jsonl").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def alone(site: Site) -> ArtifactRef:
    """The draft of one rank, undisturbed."""
    return site.train(SPEC, "alone")[0]


@pytest.fixture(scope="module")
def two(site: Site) -> ArtifactRef:
    """The draft of two ranks, undisturbed."""
    return Launched(site, "two", SPEC, ranks=2).published()


def assert_close(site: Site, one: ArtifactRef, other: ArtifactRef) -> None:
    for row, like in zip(rows(site, one), rows(site, other), strict=True):
        assert (row.pop("split"), row["step"]) == (like.pop("split"), like["step"])
        assert row == pytest.approx(like, rel=1e-5), row["step"]


def test_two_ranks_give_the_losses_of_one(site: Site, alone: ArtifactRef, two: ArtifactRef) -> None:
    assert_close(site, two, alone)


def test_two_ranks_give_the_losses_of_one_with_muon(site: Site) -> None:
    """Gradients are summed in another order, and bf16 products round: the losses agree to four digits."""
    spec = SPEC.but(optimizer="muon", steps=6)
    alone, two = site.train(spec, "muon")[0], Launched(site, "two-muon", spec, ranks=2).published()
    for row, like in zip(rows(site, two), rows(site, alone), strict=True):
        assert row["loss"] == pytest.approx(like["loss"], rel=1e-3), row["step"]


def packing(site: Site) -> Site:
    return replace(site, placement=site.placement.model_copy(update={"pack": True}))


def test_packed_samples_give_the_losses_of_unpacked_ones(site: Site, alone: ArtifactRef) -> None:
    assert_close(site, packing(site).train(SPEC, "packed")[0], alone)


@pytest.mark.soak
def test_two_ranks_give_the_losses_of_one_with_packed_samples(site: Site, alone: ArtifactRef) -> None:
    assert_close(site, Launched(packing(site), "two-packed", SPEC, ranks=2).published(), alone)


@pytest.mark.soak
def test_four_ranks_give_the_losses_of_one(site: Site, alone: ArtifactRef) -> None:
    assert_close(site, Launched(site, "four", SPEC, ranks=4).published(), alone)


@pytest.mark.parametrize(
    ("error", "leaves"), [(None, True), (CancelledError("all were asked to stop"), True), (StoreError("full"), False)]
)
def test_a_rank_takes_leave_only_where_the_others_do(error: Exception | None, leaves: bool) -> None:
    """To leave a group of cards waits for all of them: one that failed would stand there, and nobody would hear."""
    ranks, left = Ranks("cpu"), list[bool]()
    ranks.count, ranks._state = 2, SimpleNamespace(destroy_process_group=lambda: left.append(True))
    with suppress(DeepSpecError), ranks:
        if error is not None:
            raise error
    assert bool(left) == leaves


FAULTS = {
    "kill -9 of the only rank": (1, "rank 0", signal.SIGKILL),
    "kill -9 of the first of two ranks": (2, "rank 0", signal.SIGKILL),
    "kill -9 of the second of two ranks": (2, "rank 1", signal.SIGKILL),
    "kill -9 of all ranks": (2, "all ranks", signal.SIGKILL),
    "kill -9 of the launcher": (2, "launcher", signal.SIGKILL),
}
STEPS = (1, 2, 4, 5, 6, 10, 13, 15, 18, 19)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_one_run_struck_in_every_way_in_turn_publishes_the_bytes_of_an_undisturbed_run(
    site: Site, two: ArtifactRef, seed: int
) -> None:
    drawn, name, step = random.Random(seed), f"struck-{seed}", 0
    one = f"rank {drawn.randrange(2)}"
    for whom in drawn.sample([one, "all ranks", "launcher"], 3):
        step += drawn.randint(1, 5)
        struck = Launched(site, name, SPEC, ranks=2, rest=REST)
        struck.wait_for_step(step)
        struck.strike(whom, signal.SIGKILL)
        assert struck.end() != 0, whom
        assert not struck.survivors(), whom
    ref, said = run_again(site, name, ranks=2)
    assert site.checksums(ref) == site.checksums(two)
    assert step < 4 or "going on after step" in said


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", STEPS)
def test_struck_and_run_again_publishes_the_bytes_of_an_undisturbed_run(
    site: Site, alone: ArtifactRef, two: ArtifactRef, fault: str, step: int
) -> None:
    ranks, whom, number = FAULTS[fault]
    name = f"struck-{fault.replace(' ', '-')}-{step}"
    struck = Launched(site, name, SPEC, ranks, rest=REST)
    struck.wait_for_step(step)
    struck.strike(whom, number)
    assert struck.end() != 0
    assert not struck.survivors()
    ref, said = run_again(site, name, ranks)
    assert site.checksums(ref) == site.checksums(alone if ranks == 1 else two)
    assert step < 4 or "going on after step" in said


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_sigterm_saves_the_state_within_seconds_and_any_number_of_ranks_goes_on(
    site: Site, alone: ArtifactRef, ranks: int
) -> None:
    """The run that is struck packs its samples, the one that goes on does not: no loss tells the difference."""
    struck = Launched(packing(site), f"term-{ranks}", SPEC, ranks, rest=REST)
    struck.wait_for_step(8)
    begin = time.time()
    struck.strike("all ranks", signal.SIGTERM)
    code = struck.end()
    assert max(mark.stat().st_mtime for mark in site.placement.scratch.rglob("latest.json")) - begin < 10
    assert code == EXIT_CANCELLED or (ranks > 1 and code == 1)  # torchrun has one code for every failure
    assert "is saved, run again to go on" in struck.log()
    assert not struck.survivors()
    ref, said = run_again(site, f"term-{ranks}", 3 - ranks)
    assert_close(site, ref, alone)
    assert "going on after step" in said


def run_again(site: Site, name: str, ranks: int) -> tuple[ArtifactRef, str]:
    """Return what the same work publishes at the next attempt, and what it says."""
    if ranks == 1:
        report = Heard()
        return site.train(SPEC, name, report)[0], "\n".join(report.lines)
    again = Launched(site, name, SPEC, ranks)
    return again.published(), again.log()


@pytest.mark.parametrize("reduced", [None, 40])
def test_a_rank_that_is_given_its_weights_has_room_for_the_same_draft_and_holds_none_of_it_on_the_host(
    site: Site, reduced: int | None
) -> None:
    spec = SMALL.but(draft=SMALL.draft.but(draft_vocab_size=reduced))
    cache = TargetCache(site.cache, site.placement.scratch)
    samples, folder = CacheSplit(cache, "train", 0, 8), site.placement.target_folder(cache.facts.target.digest)
    made = fresh_draft(spec, cache.facts, folder, samples, lambda _: None)
    room = empty_draft(spec, cache.facts, folder, samples, torch.device("cpu"))
    traits = [
        {name: (each.shape, each.dtype, each.requires_grad) for name, each in model.named_parameters()}
        for model in (made, room)
    ]
    assert traits[0] == traits[1]
    given = {**dict(made.named_buffers()), **{n: p for n, p in made.named_parameters() if not p.requires_grad}}
    assert len(given) == (2 if reduced is None else 4)
    for name, tensor in given.items():
        assert torch.equal(room.get_parameter(name) if name.endswith("weight") else room.get_buffer(name), tensor)
    if reduced is None:  # else the rows of the head are chosen by what is counted
        elsewhere = empty_draft(spec, cache.facts, folder, samples, torch.device("meta"))
        assert all(tensor.is_meta for tensor in elsewhere.state_dict().values())

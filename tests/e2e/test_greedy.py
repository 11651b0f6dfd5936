"""Where answers are sampled, each stage's own command makes the greedy ones beside them, and their cache, too."""

import json
from pathlib import Path

import pytest

from deepspec.artifacts import Manifest
from deepspec.catalog import catalog
from tests.e2e.conftest import Deepspec

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1500)]

SAMPLED = (
    "regenerate.sampling.temperature=1.0",
    "train.greedy_samples=3",
    "prepare.splits={validation: 0.3}",
    "train.steps=4",
)


def made(deepspec: Deepspec, kind: str) -> list[Manifest]:
    return [entry.manifest for entry in catalog(deepspec.store) if entry.kind == kind and entry.manifest]


def test_stage_by_stage_greedy_answers_come_along_and_training_walks_over_them(
    api: str, data: Path, tmp_path: Path
) -> None:
    extra = tuple(word for each in SAMPLED for word in ("--set", each))
    deepspec = Deepspec(data=data, root=tmp_path / "store", api=api, extra=extra)
    for stage in ("prepare", "regenerate", "cache", "train"):
        done = deepspec.run(stage)
        assert done.returncode == 0, done.stdout + done.stderr
    sampled, greedy = sorted(made(deepspec, "answers"), key=lambda each: -each.counts["input"])
    assert (greedy.counts["input"], greedy.counts["sampling"]["temperature"]) == (3, 0.0)
    assert sampled.counts["sampling"]["temperature"] == 1.0
    caches = {each.inputs["answers"].address: each for each in made(deepspec, "target_cache")}
    assert caches[greedy.address].counts["splits"].keys() == {"validation"}
    (draft,) = made(deepspec, "draft")
    wanted = {"target_cache": caches[sampled.address].address, "greedy_cache": caches[greedy.address].address}
    assert {name: ref.address for name, ref in draft.inputs.items()} == wanted
    look = draft.counts["held_out"]
    assert look["accepted_length"] == look["accepted_length_sampled"]
    assert look["known_greedy"] > 0.5, "sampled answers are cut after a few words"
    assert "accepted_greedy@0" in look
    told = json.loads(deepspec.run("plan", "--json").stdout)
    assert told["machines"]["laptop"]["greedy"]["prompts"] == 3
    again = deepspec.run("train")
    assert "train: Cached" in again.stdout, again.stdout

"""What version 0.1 left behind still opens: its store, its cached results, its deployments."""

import tarfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prefect.serializers import JSONSerializer

from deepspec.artifacts import Artifact, ArtifactRef, open_artifact, reference
from deepspec.catalog import catalog
from deepspec.checkpoint.draft import load_draft
from deepspec.disk import verify_file
from deepspec.formats.exports import read_index
from deepspec.formats.scores import SCORES, read_scores
from deepspec.formats.speed import read_speed
from deepspec.messages.conversations import published_prompts, published_rows
from deepspec.placement import Placement
from deepspec.publish import Out
from deepspec.start.begin import earlier_weights
from deepspec.start.beginning import Beginning
from deepspec.store import Store
from deepspec.target_cache.cache import TargetCache
from tests.given.heard import Heard
from tests.given.published.older import LEFT

ENTRYPOINTS = (
    "flows.draft.build_draft", "flows.shards.make_one_shard", "flows.sweep.sweep", "flows.stages.prepare",
    "flows.stages.regenerate", "flows.stages.cache", "flows.stages.train", "flows.stages.export",
    "flows.stages.evaluate", "flows.stages.benchmark", "flows.stages.release", "flows.reevaluate.reevaluate",
    "flows.alert.alert", "flows.recover.recover",
)  # fmt: skip
"""Of the deployments that a server of then has."""

RESULT = (
    b'{"__class__": "deepspec.artifacts.ArtifactRef", "data": {"kind": "draft", "address": "aa", "content": "bb", '
    b'"uri": "/data/store/draft/aa"}}'
)
"""A task's cached result as Prefect's JSON serializer wrote it then."""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("left")
    with tarfile.open(LEFT) as archive:
        archive.extractall(folder, filter="data")
    store = Store(folder / "store")
    found = {entry.kind: entry for entry in catalog(store)}
    assert {entry.state for entry in found.values()} == {"published"}
    refs = {kind: reference(store, entry.manifest) for kind, entry in found.items() if entry.manifest is not None}
    return {kind: open_artifact(store, ref, folder / "scratch") for kind, ref in refs.items()}


def test_every_file_of_every_stage_is_whole(left: dict[str, Artifact]) -> None:
    assert len(left) == 8
    for artifact in left.values():
        for name in artifact.names():
            verify_file(artifact.path(name), artifact.entry(name), name)


def test_rows_scores_and_speed_are_read(left: dict[str, Artifact]) -> None:
    assert all(row["messages"] for row in published_prompts(left["prompts"]))
    assert all(row["status"] == "success" for row in published_rows(left["answers"]))
    assert read_scores(left["scores"].path(SCORES)).overall
    assert read_speed(left["speed"].path("speed.json")).batches
    assert set(read_index(left["exports"]).forms) >= {"deepspec", "speculators"}


def test_cached_states_are_read(left: dict[str, Artifact], tmp_path: Path) -> None:
    cache = TargetCache(left["target_cache"], tmp_path)
    record = cache.record(int(cache.numbers("train")[0]))
    assert record.hidden.shape[0] == len(record.input_ids) > 0


def test_a_draft_is_loaded_and_a_run_continues_it(left: dict[str, Artifact], tmp_path: Path) -> None:
    draft = left["draft"]
    folder = draft.path("model.safetensors").parent
    assert load_draft(folder).config.algorithm == "dspark"
    out = Out(draft.store, "draft", "f" * 32, {}, tmp_path)
    heard = Heard()
    spec = Beginning(continue_from=draft.ref.address)
    tensors = earlier_weights(spec, 7, out, Placement(scratch=tmp_path), heard.log)
    assert tensors is not None
    assert int(tensors["step"]) == 3
    assert "on a new schedule of 7 steps" in heard.lines[0]


def test_cached_results_are_read() -> None:
    found = JSONSerializer().loads(RESULT)
    assert found == ArtifactRef(kind="draft", address="aa", content="bb", uri="/data/store/draft/aa")
    assert b"deepspec.artifacts.ArtifactRef" in JSONSerializer().dumps(found)


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_deployments_find_their_flows(entrypoint: Any) -> None:
    module, _, name = entrypoint.rpartition(".")
    assert callable(getattr(import_module(module), name))

"""The main job: one command from prompts to a release; typed again it takes seconds; killed anywhere it goes on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from deepspec.artifacts import Artifact, Manifest
from deepspec.catalog import catalog
from deepspec.lines.rows import read_rows, write_rows
from deepspec.publish import Out
from deepspec.regenerate.spec import RegenerateSpec
from deepspec.stages import STAGES
from tests.e2e.conftest import Deepspec, Undisturbed, kill_when, none_left
from tests.given.engines.answering import Simulated, serve
from tests.given.server.session import query

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def answers_of(deepspec: Deepspec) -> dict[str, str]:
    """Return id -> answer text of the published answers; an id that is there twice fails."""
    manifest = deepspec.manifest("answers")
    found: dict[str, str] = {}
    for name, entry in manifest.files.items():
        if not name.endswith(".jsonl.zst"):
            continue
        for _, row in read_rows(deepspec.folder / f"{manifest.kind}/{manifest.address}/{entry.key}"):
            assert row["id"] not in found
            found[row["id"]] = json.dumps(row["messages"], sort_keys=True)
    return found


def copied(deepspec: Deepspec, folder: Path, *kinds: str) -> Deepspec:
    """Return a command line with a store that holds copies of some kinds."""
    for kind in kinds:
        shutil.copytree(deepspec.folder / kind, folder / "store" / kind)
    return replace(deepspec, root=folder / "store")


def test_a_run_publishes_every_stage(undisturbed: Undisturbed) -> None:
    deepspec, printed = undisturbed
    for stage in STAGES.values():
        assert deepspec.manifest(stage.kind).files
        assert stage.name in printed
    assert "accepted length" in printed
    assert "speed-up" in printed
    served = deepspec.manifest("speed").counts["engine"]
    assert served["samples"] == 2
    assert served["engine"].startswith("llama.cpp")
    assert deepspec.manifest("exports").counts["parity"] is True
    assert none_left(deepspec) == []


def test_the_server_shows_tasks_and_artifacts(undisturbed: Undisturbed, api: str) -> None:
    tasks = query(api, "task_runs", {"limit": 200})
    assert set(STAGES) <= {str(task["name"]) for task in tasks if task["state_name"] == "Completed"}
    artifacts = query(api, "artifacts", {"limit": 200})
    assert {"progress", "table", "image", "markdown"} <= {str(artifact["type"]) for artifact in artifacts}


def test_typed_again_every_stage_is_cached(undisturbed: Undisturbed, api: str) -> None:
    deepspec, _ = undisturbed
    before = {task["id"] for task in query(api, "task_runs", {"limit": 200})}
    done = deepspec.run("run")
    assert done.returncode == 0, done.stderr
    new = [task for task in query(api, "task_runs", {"limit": 200}) if task["id"] not in before]
    assert {str(task["name"]) for task in new if task["state_name"] == "Cached"} == set(STAGES)


def test_a_sweep_trains_what_is_not_published_and_tells_the_best_in_json(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    deepspec = copied(undisturbed[0], tmp_path, "prompts", "answers", "target_cache", "draft")
    asked = deepspec.manifest("draft").address
    done = deepspec.run("sweep", "--row", "short: train.steps=2", "--seeds", "1", "--json")
    assert done.returncode == 0, done.stderr
    board = json.loads(done.stdout)
    drafts = {each["variant"]: each["drafts"] for each in board["standings"]}
    assert drafts.keys() == {"as asked", "short"}
    assert drafts["as asked"] == [asked], "what is published is not trained again"
    assert (board["equal"], board["failed"]) == ("steps", {})
    assert {each["steps"] for each in board["standings"]} == {12, 2}
    assert all(each["accepted_length"]["value"] >= 1 for each in board["standings"])


def test_a_deleted_draft_is_made_again_and_nothing_else_though_the_run_is_killed_meanwhile(
    undisturbed: Undisturbed, api: str, tmp_path: Path
) -> None:
    deepspec = copied(undisturbed[0], tmp_path, *(stage.kind for stage in STAGES.values()))
    shutil.rmtree(deepspec.folder / "draft")
    process = deepspec.start("run")
    kill_when(process, lambda: any((deepspec.data / "scratch" / "draft").rglob("*latest*")))
    assert none_left(deepspec) == []
    assert not list((deepspec.folder / "draft").glob("*/manifest.json"))
    before = {task["id"] for task in query(api, "task_runs", {"limit": 200})}
    done = deepspec.run("run")
    assert done.returncode == 0, done.stderr
    assert deepspec.checksums("draft") == undisturbed[0].checksums("draft")
    new = [task for task in query(api, "task_runs", {"limit": 200}) if task["id"] not in before]
    assert {str(task["name"]) for task in new if task["state_name"] == "Completed"} == {"plan", "train"}


def with_another_answer(deepspec: Deepspec, source: Deepspec, scratch: Path) -> Manifest:
    """Publish the answers of another store at the same address, with one answer changed, and return their manifest."""
    old = source.manifest("answers")
    artifact = Artifact(source.store, old, scratch)
    out = Out(deepspec.store, "answers", old.address, old.inputs, scratch)
    for name in artifact.names():
        shutil.copyfile(artifact.path(name), out.file(name))
    name = next(name for name in artifact.names() if name.endswith(".jsonl.zst"))
    rows = [row for _, row in read_rows(out.file(name))]
    rows[0]["messages"][-1]["content"] += " And one more thing."
    rows[0].pop("token_ids", None)
    write_rows(out.file(name), rows)
    out.publish(RegenerateSpec.model_validate(old.spec), old.version, old.counts)
    return deepspec.manifest("answers")


@pytest.mark.soak
def test_other_answers_make_cache_and_draft_stale_and_they_are_rebuilt(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    deepspec = copied(undisturbed[0], tmp_path, "prompts", "target_cache", "draft")
    old = {kind: deepspec.manifest(kind) for kind in ("target_cache", "draft")}
    answers = with_another_answer(deepspec, undisturbed[0], tmp_path / "scratch")
    assert answers.address == undisturbed[0].manifest("answers").address
    assert {entry.kind: entry.state for entry in catalog(deepspec.store)}["target_cache"] == "stale"
    for stage in ("cache", "train"):
        done = deepspec.run(stage)
        assert done.returncode == 0, done.stderr
        assert "is stale" in " ".join(done.stdout.split())
    assert deepspec.manifest("target_cache").inputs["answers"].content == answers.content
    assert deepspec.manifest("draft").content != old["draft"].content


@pytest.mark.soak
def test_killed_while_regenerating_every_committed_answer_survives(undisturbed: Undisturbed, tmp_path: Path) -> None:
    deepspec = copied(undisturbed[0], tmp_path, "prompts")
    process = deepspec.start("regenerate")
    marks = deepspec.folder / "answers"
    kill_when(process, lambda: len(list(marks.glob("*/parts/*/*.json"))) >= 2)
    assert none_left(deepspec) == []
    kept = {
        str(row["id"]): json.dumps(row["messages"], sort_keys=True)
        for part in marks.glob("*/attempt-*/*.jsonl.zst")
        for _, row in read_rows(part)
    }
    assert len(kept) >= 16
    done = deepspec.run("regenerate")
    assert done.returncode == 0, done.stderr
    answers = answers_of(deepspec)
    assert {sample: answers[sample] for sample in kept} == kept
    assert len(answers) == deepspec.manifest("prompts").counts["kept"]


@pytest.mark.soak
def test_a_cache_killed_and_resumed_equals_that_of_an_undisturbed_run(undisturbed: Undisturbed, tmp_path: Path) -> None:
    deepspec = copied(undisturbed[0], tmp_path, "prompts", "answers")
    process = deepspec.start("cache")
    kill_when(process, lambda: any((deepspec.folder / "target_cache").glob("*/parts/*/*.json")))
    assert none_left(deepspec) == []
    assert not list((deepspec.folder / "target_cache").glob("*/manifest.json"))
    done = deepspec.run("cache")
    assert done.returncode == 0, done.stderr
    assert deepspec.checksums("target_cache") == undisturbed[0].checksums("target_cache")


KEY = "sk-very-secret-4711"
SAVE = "import os; from prefect.blocks.system import Secret; Secret(value=os.environ['GIVEN']).save('our-engines')"


def leaks(texts: Iterable[str], folders: Iterable[Path]) -> list[str]:
    """Return the texts and files that hold a key, compressed rows included."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    rows = [zstandard.open(path, "rt", errors="replace").read() for path in files if path.suffix == ".zst"]
    found = [text for text in [*texts, *rows] if KEY in text]
    return found + [str(path) for path in files if KEY.encode() in path.read_bytes()]


def test_a_key_is_used_and_leaves_no_trace_in_store_scratch_logs_or_server(
    undisturbed: Undisturbed, api: str, tmp_path: Path
) -> None:
    deepspec = copied(undisturbed[0], tmp_path, "prompts")
    given = {**deepspec.environment(), "GIVEN": KEY}
    subprocess.run([sys.executable, "-c", SAVE], env=given, check=True, capture_output=True)
    engine = Simulated(key=KEY, counts_prompts=False)
    with serve(engine) as (server,):
        at = ("--endpoint", server.engine.url, "--model", "tiny", "--key-block", "our-engines")
        done = deepspec.run("regenerate", *at)
    assert done.returncode == 0, done.stderr
    assert deepspec.manifest("answers").counts["success"] == 40
    artifacts = query(api, "artifacts", {"artifacts": {"key": {"like_": "regenerate-"}}, "limit": 200})
    assert {"regenerate-progress", "regenerate-endpoints"} <= {str(artifact["key"]) for artifact in artifacts}
    shown = [repr(query(api, what, {"limit": 200})) for what in ("artifacts", "logs", "flow_runs", "task_runs")]
    folders = [tmp_path, deepspec.data / "scratch", Path(os.environ["PREFECT_HOME"])]
    assert leaks([done.stdout, done.stderr, *shown], folders) == []

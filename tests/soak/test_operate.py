"""Operated for long: machines that vanish, two runs of one plan, hundreds of tasks, several nodes, a Ray cluster."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepspec.stages import STAGES
from deepspec.store import Store
from flows.chain import Chain
from infra.children.child import Job
from infra.children.stage import child_job
from infra.engines.managed import free_port
from infra.site import FanOut, Site
from tasks import shards
from tests.given.apart import ROOT
from tests.given.heard import Heard
from tests.given.published.caches import build, placement_for, publish_answers, rows, spec_for
from tests.given.published.site import SMALL, make_site
from tests.given.server.operated import Operated, checkpoints, manifests, operate, until, workers
from tests.given.server.session import api, query  # noqa: F401 - a fixture
from tests.given.targets.tiny import write_target

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

AUTOMATIONS = ROOT / "deployments" / "automations.yaml"


@pytest.fixture(scope="module")
def operated(api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:  # noqa: F811
    with operate(api, tmp_path_factory.mktemp("operated")) as found:
        yield found


@pytest.fixture(scope="module")
def built(operated: Operated) -> str:
    run = operated.start("build-draft/local")
    operated.finish(run)
    return run


def test_a_sweep_makes_what_its_variants_share_once_and_shows_the_best_first(operated: Operated, built: str) -> None:
    before = manifests()
    variants = [{"name": f"steps-{steps}", "changes": [f"train.steps={steps}"]} for steps in (2, 4, 6)]
    run = operated.start("sweep/local", variants=variants, terms={"by": "decoded"})
    operated.finish(run)
    made = sorted(key.split("/")[0] for key in manifests() if key not in before)
    assert made == ["draft", "draft", "scores", "scores"], "four steps are what the run before made"
    (board,) = artifacts_of(operated, run, "leaderboard")
    rows = json.loads(str(board["data"]))
    assert {row["variant"] for row in rows} == {"steps-2", "steps-4", "steps-6"}
    lengths = [float(row["accepted length"]) for row in rows]
    assert lengths == sorted(lengths, reverse=True)


def test_shards_as_runs_of_a_deployment_make_the_cache_of_one_process(operated: Operated, built: str) -> None:
    small = "regenerate.rows_per_part=12"
    for stage in ("regenerate", "cache"):
        fan_out = {"workers": 2, "runner": "deployment", "address": "shard/local"}
        site = {**operated.parameters()["site"], "fan_out": fan_out}
        run = operated.start(f"{stage}/local", small, site=site)
        operated.finish(run)
    shards_of: dict[str, object] = {"flows": {"name": {"any_": ["shard"]}}}
    made = query(operated.api, "flow_runs", shards_of)
    assert len(made) > 1
    assert {shard["state_name"] for shard in made} == {"Completed"}
    (told,) = [task for task in tasks_of(operated, run) if task["name"] == "cache"]
    assert told["state_name"] == "Completed"


def test_shards_of_a_run_that_is_cancelled_end_with_it(operated: Operated, built: str) -> None:
    small = "regenerate.rows_per_part=12"
    operated.finish(operated.start("regenerate/local", small))
    fan_out = {"workers": 2, "runner": "deployment", "address": "shard/local"}
    site = {**operated.parameters()["site"], "fan_out": fan_out}
    before = {shard["id"] for shard in query(operated.api, "flow_runs", {"flows": {"name": {"any_": ["shard"]}}})}
    run = operated.start("cache/local", small, "cache.codec=fp8", site=site)

    def below() -> list[dict[str, object]]:
        found = query(operated.api, "flow_runs", {"flows": {"name": {"any_": ["shard"]}}})
        return [shard for shard in found if shard["id"] not in before]

    until(lambda: any(shard["state_name"] == "Running" for shard in below()))
    operated.cancel(run)
    until(lambda: {shard["state_type"] for shard in below()} <= {"CANCELLED", "COMPLETED"})
    assert "CANCELLED" in {shard["state_type"] for shard in below()}
    assert [each for shard in below() for each in operated.processes(str(shard["id"]))] == []


def test_a_machine_that_vanishes_is_missed_by_its_heartbeats_and_its_run_goes_on(
    operated: Operated, built: str
) -> None:
    """Nobody is left to say that the run is over: the automation does, the slot comes back, another worker goes on."""
    shorten_heartbeats(operated.api, seconds=60)
    before = checkpoints()
    run = operated.start("train/local", "train.steps=100000", "train.seed=11")
    until(lambda: checkpoints() > before)
    until(lambda: beats(operated, run) > 1)
    vanish()
    assert operated.processes(run) == []
    assert operated.state(run) == "Running"
    operated.start_worker()
    until(lambda: "going on after step" in operated.logs(run), seconds=600)
    told = operated.get(f"flow_run_states/?flow_run_id={run}")
    assert next(state["message"] for state in told if state["type"] == "CRASHED").startswith("no heartbeat")
    operated.cancel(run)


def shorten_heartbeats(api: str, seconds: int) -> None:  # noqa: F811
    """Let the automation miss heartbeats after this time."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        (found,) = client.read_automations_by_name("deepspec-zombies")
        told = next(each for each in yaml.safe_load(AUTOMATIONS.read_text()) if each["name"] == found.name)
        shorter = {**told, "trigger": {**told["trigger"], "within": seconds}}
        client.update_automation(found.id, AutomationCore.model_validate(shorter))


def beats(operated: Operated, run: str) -> int:
    """Return how many heartbeats of a run the server has."""
    which = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    return int(operated.post("events/filter", filter=which)["total"])


def vanish() -> None:
    """Take the worker away with all that is below it, as when its machine loses power: nothing gets to react."""
    (lost,) = workers()
    guard = lost.parent()
    assert guard is not None
    gone = [guard, *guard.children(recursive=True)]
    for process in gone:
        process.suspend()
    for process in gone:
        process.kill()
    psutil.wait_procs(gone)


def tasks_of(operated: Operated, run: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = operated.post("task_runs/filter", flow_runs={"id": {"any_": [run]}}, limit=200)
    return found


def artifacts_of(operated: Operated, run: str, key: str) -> list[dict[str, object]]:
    return query(operated.api, "artifacts", {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}})


def test_shards_on_threads_give_the_bytes_of_one_process(api: Any, tmp_path: Path) -> None:  # noqa: F811
    target = write_target(tmp_path / "target")
    store, scratch, spec = Store(tmp_path / "store"), tmp_path / "scratch", spec_for(target)
    answers = publish_answers(store, scratch, [rows(6), rows(7, seed=1), rows(5, seed=2)])
    site = Site(root=store.root, placement=placement_for(target, scratch), fan_out=FanOut(workers=2))

    @flow(name="cache-in-shards")
    def cache() -> str:
        shards.make_shards("cache", spec, {"answers": answers.ref}, site)
        return Chain({"cache": spec}, site).run("cache", answers.ref).content

    alone = build(spec, target, answers, Store(tmp_path / "other"), tmp_path / "elsewhere")
    with temporary_settings({PREFECT_API_URL: api}):
        assert cache() == alone.content


def test_two_nodes_train_one_draft(tmp_path: Path) -> None:
    """The same job on two machines, as an Indexed Job or srun starts it; both are this one here."""
    site = make_site(tmp_path)
    place = Site(root=site.store.root, placement=site.placement)
    job = child_job(place.work(STAGES["train"], SMALL, {"target_cache": site.cache.ref}, Heard()), place)
    first = f"127.0.0.1:{free_port()}"
    nodes = [start_node(job, number, first, tmp_path) for number in (0, 1)]
    said = [node.communicate(timeout=600) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert len(site.store.list("draft")) > 0
    assert said[1][0].strip() == "published by another"
    assert said[0][0].strip() != "published by another"


def start_node(job: Job, number: int, first: str, folder: Path) -> subprocess.Popen[str]:
    own = folder / f"node-{number}"
    own.mkdir()
    placement = job.placement.model_copy(update={"scratch": own / "scratch"})
    (own / "job.told").write_text(job.model_copy(update={"placement": placement}).model_dump_json())
    told = {"DEEPSPEC_NODES": "2", "DEEPSPEC_FIRST_NODE": first, "JOB_COMPLETION_INDEX": str(number)}
    command = [sys.executable, "-m", "tests.soak.one_node", str(own / "job.told"), str(own)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **told}, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)

"""Operated for long: machines that vanish, two runs of one plan, hundreds of tasks, several nodes, a Ray cluster."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepspec.stages import STAGES
from deepspec.store import Store
from flows.chain import Chain
from infra.child import Job
from infra.engines import free_port
from infra.prefect_up import worker
from infra.settings import default_root
from infra.work import FanOut, Site, child_job
from tasks import shards
from tests.cache.made import build, placement_for, publish_answers, rows, spec_for
from tests.e2e.conftest import ROOT, api, query  # noqa: F401 - a fixture
from tests.e2e.operated import Operated, operate, until
from tests.target.tiny import write_target
from tests.train.conftest import SMALL, make_site

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def operated(api, tmp_path_factory):  # noqa: F811
    with operate(api, tmp_path_factory.mktemp("operated")) as found:
        yield found


@pytest.fixture(scope="module")
def built(operated):
    run = operated.start("build-draft/local")
    until(lambda: operated.state(run) in {"Completed", "Failed"}, seconds=1200)
    assert operated.state(run) == "Completed", operated.logs(run)
    return run


def published() -> dict[str, bytes]:
    store = Store(default_root())
    return {key: store.read_bytes(key) for key in store.list("") if key.endswith("manifest.json")}


def test_two_runs_of_one_plan_at_once_make_everything_once(operated: Operated, built):
    """They take turns by the limit; each stage is published once, and what was there before stays."""
    before = published()
    both = [operated.start("build-draft/local", "train.seed=7") for _ in range(2)]
    until(lambda: {operated.state(run) for run in both} == {"Completed"}, seconds=1200)
    after = published()
    assert {key: after[key] for key in before} == before
    kinds = [key.split("/")[0] for key in after if key not in before]
    assert sorted(kinds) == sorted(stage.kind for stage in STAGES.values() if "draft" in (stage.kind, *stage.inputs))


def test_a_deleted_artifact_is_made_again(operated: Operated, built):
    store = Store(default_root())
    (release,) = [key for key in published() if key.startswith("release/")][:1]
    store.delete(release)
    run = operated.start("build-draft/local")
    until(lambda: operated.state(run) == "Completed", seconds=600)
    states = {task["name"]: task["state_name"] for task in tasks_of(operated, run)}
    assert states.pop("plan") == "Completed"
    assert {name for name, state in states.items() if state == "Completed"} <= {"release"}


def test_a_worker_that_is_killed_takes_its_run_with_it_and_the_next_one_goes_on(operated: Operated, built):
    run = operated.start("train/local", "train.steps=100000", "train.seed=11")
    until(lambda: operated.state(run) == "Running" and operated.processes(run, "infra.child"))
    until(lambda: [key for key in Store(default_root()).list("draft") if "/checkpoints/" in key])
    (first,) = [pid for pid in workers() if pid]
    os.kill(first, signal.SIGKILL)
    until(lambda: not operated.processes(run), seconds=60)
    with worker(operated.api, "deepspec-local", operated.data / "logs"):
        if operated.state(run) == "Running":  # nobody was left to say so; the heartbeat's automation does, in 9 minutes
            operated.set_state(run, type="CRASHED")
        until(lambda: "going on after step" in operated.logs(run), seconds=600)
        operated.set_state(run, type="CANCELLING")
        until(lambda: operated.state(run) == "Cancelled" and not operated.processes(run))


def workers() -> list[int]:
    """Return the worker processes below this test, guards aside."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"worker" in words and b"deepspec-local" in words and not any(b"guard.py" in word for word in words):
            found.append(int(entry.name))
    return found


def tasks_of(operated: Operated, run: str) -> list[dict[str, str]]:
    return operated.post("task_runs/filter", flow_runs={"id": {"any_": [run]}}, limit=200)


def test_two_hundred_shard_tasks_do_not_lock_the_database(api, tmp_path, monkeypatch):  # noqa: F811
    done = []
    monkeypatch.setattr(shards, "count_shards", lambda *_: 200)
    monkeypatch.setattr(shards, "run_shard", lambda stage, shard, *_: done.append(shard))
    site = Site(root=str(tmp_path), fan_out=FanOut(workers=16))

    @flow(name="many-shards")
    def many() -> None:
        shards.make_shards(STAGES["prepare"], STAGES["prepare"].spec.model_construct(sources=()), {}, site)

    with temporary_settings({PREFECT_API_URL: api}):
        many()
    assert sorted(done) == list(range(200))
    until(
        lambda: (
            len([t for t in query(api, "task_runs", {"limit": 200, "task_runs": {"name": {"like_": "prepare-"}}})])
            == 200
        )
    )
    logs = [path for path in Path(os.environ["PREFECT_HOME"]).glob("server.log")]
    assert logs
    assert not [path for path in logs if "database is locked" in path.read_text()]


def test_shards_on_threads_give_the_bytes_of_one_process(api, tmp_path):  # noqa: F811
    target = write_target(tmp_path / "target")
    store, scratch, spec = Store(tmp_path / "store"), tmp_path / "scratch", spec_for(target)
    answers = publish_answers(store, scratch, [rows(6), rows(7, seed=1), rows(5, seed=2)])
    site = Site(root=store.root, placement=placement_for(target, scratch), fan_out=FanOut(workers=2))

    @flow(name="cache-in-shards")
    def cache() -> str:
        shards.make_shards(STAGES["cache"], spec, {"answers": answers.ref}, site)
        return Chain({"cache": spec}, site).run("cache", answers.ref).content

    alone = build(spec, target, answers, Store(tmp_path / "other"), tmp_path / "elsewhere")
    with temporary_settings({PREFECT_API_URL: api}):
        assert cache() == alone.content


def test_two_nodes_train_one_draft(tmp_path):
    """The same job on two machines, as an Indexed Job or srun starts it; both are this one here."""
    site = make_site(tmp_path)
    job = child_job(
        STAGES["train"], SMALL, {"target_cache": site.cache.ref}, Site(root=site.store.root, placement=site.placement)
    )
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

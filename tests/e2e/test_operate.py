"""Operated by Prefect: a real server, a worker, every deployment, and an S3 server for artifacts and results."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepspec.catalog import find
from deepspec.stages import STAGES
from deepspec.store import Store
from deepspec.train.spec import TrainSpec
from infra.server.setup import set_up
from infra.settings import default_root
from infra.site import FanOut, Site
from tasks import shards
from tasks.report import PrefectReport
from tests.given.apart import ROOT
from tests.given.published.evaluated import publish_better
from tests.given.server.operated import Operated, checkpoints, environment, manifests, operate, until, workers
from tests.given.server.session import query

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PREFECT = [sys.executable, "-m", "prefect"]


@pytest.fixture(scope="module")
def operated(api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    with operate(api, tmp_path_factory.mktemp("operated")) as found:
        yield found


@pytest.fixture(scope="module")
def built(operated: Operated) -> dict[str, Any]:
    """The whole pipeline, started as a person would start it."""
    parameters = json.dumps(operated.parameters())
    command = [*PREFECT, "deployment", "run", "build-draft/local", "--params", parameters, "--watch"]
    done = subprocess.run(command, env=environment(operated.api), capture_output=True, text=True, check=False)
    (run,) = query(operated.api, "flow_runs", {"flow_runs": {"tags": {"all_": ["target:target"]}}})
    assert done.returncode == 0, f"{operated.logs(str(run['id']))}\n{done.stdout[-1000:]}{done.stderr[-1000:]}"
    return run


def test_everything_is_deployed_and_cron_runs_are_scheduled(operated: Operated) -> None:
    deployed = {f"{found['entrypoint']}": found for found in query(operated.api, "deployments", {})}
    assert {f"flows.stages.{stage}" for stage in STAGES} < set(deployed)
    assert deployed["flows.draft.build_draft"]["enforce_parameter_schema"]
    reevaluate = deployed["flows.reevaluate.reevaluate"]
    assert {found["slug"] for found in reevaluate["schedules"]} == {"nightly-baseline", "weekly-candidate"}
    its_runs = {"deployments": {"id": {"any_": [reevaluate["id"]]}}}
    runs = until(lambda: query(operated.api, "flow_runs", its_runs))
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}


def test_a_misspelt_parameter_is_refused_by_the_server(operated: Operated) -> None:
    parameters = '{"choices": {"targt": "x"}, "site": {}}'
    command = [*PREFECT, "deployment", "run", "build-draft/local", "--params", parameters]
    done = subprocess.run(command, env=environment(operated.api), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "targt" in done.stdout + done.stderr


def test_a_run_publishes_to_s3_and_can_be_found_and_read(operated: Operated, built: dict[str, Any]) -> None:
    store = Store(default_root())
    assert store.root.startswith("s3://")
    assert {key.split("/")[0] for key in manifests()} == {stage.kind for stage in STAGES.values()}
    assert [key for key in store.list("prefect-results") if "stages/train/" in key]
    assert {"target:target", "algorithm:dspark"} < set(built["tags"])
    shown = query(operated.api, "artifacts", {"artifacts": {"flow_run_id": {"any_": [built["id"]]}}, "limit": 200})
    assert {str(found["type"]) for found in shown} >= {"progress", "table", "image", "markdown"}
    assert {"plan-estimate", "run-story", "train-progress", "release-report"} <= {str(found["key"]) for found in shown}
    assert {f"{stage}-artifact" for stage in STAGES} <= {str(found["key"]) for found in shown}
    words = [sys.executable, "-m", "cli.main", "runs", "--tag", "algorithm:dspark", "--json"]
    listed = subprocess.run(words, env=environment(operated.api), cwd=ROOT, capture_output=True, text=True, check=True)
    (run,) = [run for run in json.loads(listed.stdout)["runs"] if run["id"] == built["id"]]
    assert {"flow": "build-draft", "state": "Completed"}.items() <= run.items()
    assert "algorithm:dspark" in run["tags"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_run_page_shows_its_artifacts(operated: Operated, built: dict[str, Any], tmp_path: Path) -> None:
    picture = ROOT / "runs" / "run-page.png"
    picture.parent.mkdir(exist_ok=True)
    page = f"{operated.api.removesuffix('/api')}/v2/runs/flow-run/{built['id']}?tab=Artifacts"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1400,1000"]
    browser = ["chromium", *options, f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
    shown = subprocess.run(
        [*browser, f"--screenshot={picture}", "--dump-dom", page],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    assert "evaluate-acceptance" in shown.stdout
    assert "run-story" in shown.stdout
    assert picture.stat().st_size > 20_000


def test_a_cancelled_training_leaves_no_process_and_goes_on_at_its_checkpoint_when_retried(
    operated: Operated, built: dict[str, Any]
) -> None:
    run = start_training(operated, seed=1)
    assert operated.cancel(run) < 20
    operated.set_state(run, type="SCHEDULED", name="AwaitingRetry")
    until(lambda: resumed(operated, run) == 1)
    operated.cancel(run)


@pytest.mark.soak
def test_a_training_that_is_killed_and_loses_its_worker_goes_on_by_itself(
    operated: Operated, built: dict[str, Any]
) -> None:
    """Kill -9 of the engine, then of the worker; the automation notices each."""
    run = start_training(operated, seed=2)
    for engine in operated.processes(run, "prefect"):
        os.kill(engine, signal.SIGKILL)
    until(lambda: resumed(operated, run) == 1)
    (lost,) = workers()
    os.kill(lost.pid, signal.SIGKILL)
    until(lambda: not operated.processes(run))
    operated.start_worker()
    until(lambda: resumed(operated, run) == 2)
    assert operated.cancel(run) < 20
    told = operated.get(f"flow_run_states/?flow_run_id={run}")
    assert [state["type"] for state in told].count("CRASHED") == 2


@pytest.mark.soak
def test_two_runs_at_once_make_a_deleted_artifact_again_once_and_leave_the_rest(
    operated: Operated, built: dict[str, Any]
) -> None:
    """They take turns by the limit: one trains, the other finds the draft."""
    before = manifests()
    (draft,) = [key for key in before if key.startswith("draft/")]
    Store(default_root()).delete(draft)
    runs = [operated.start("train/local") for _ in range(2)]
    operated.finish(*runs)
    after = manifests()
    assert {key: mark for key, mark in after.items() if key != draft} == {
        key: before[key] for key in before if key != draft
    }
    assert json.loads(after[draft])["content"] == json.loads(before[draft])["content"]
    trained = query(operated.api, "artifacts", {"artifacts": {"key": {"any_": ["train-log"]}}, "limit": 200})
    assert len({found["flow_run_id"] for found in trained} & set(runs)) == 1


def test_a_reevaluation_that_finds_a_draft_worse_starts_the_alert_flow(
    operated: Operated, built: dict[str, Any]
) -> None:
    store, scratch = Store(default_root()), operated.data / "scratch"
    (key,) = [key for key in manifests() if key.startswith("scores/")]
    publish_better(store, find(store, key.removesuffix("/manifest.json")), "d" * 32, scratch)
    operated.finish(operated.start("reevaluate/local", release=f"scores/{'d' * 32}"))
    (alert,) = until(lambda: alerts(operated.api))
    operated.finish(alert)
    (artifact,) = query(operated.api, "artifacts", {"artifacts": {"key": {"any_": ["regression"]}}})
    assert "accepted length at temperature 0 fell from" in str(artifact["data"])


@pytest.mark.soak
def test_two_hundred_shard_tasks_do_not_lock_the_database(
    api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    log = Path(os.environ["PREFECT_HOME"], "server.log")
    before = log.stat().st_size
    monkeypatch.setattr(shards, "count_shards", lambda *_: 200)
    monkeypatch.setattr(shards, "run_shard", lambda stage, shard, *_: done.append(shard))
    site = Site(root=str(tmp_path), fan_out=FanOut(workers=16))

    @flow(name="many-shards")
    def many() -> None:
        shards.make_shards("train", TrainSpec(), {}, site)

    with temporary_settings({PREFECT_API_URL: api}):
        many()
    assert sorted(done) == list(range(200))
    ours = {"limit": 200, "flows": {"name": {"any_": ["many-shards"]}}}
    until(lambda: [task["state_name"] for task in query(api, "task_runs", ours)] == ["Completed"] * 200)
    assert b"database is locked" not in log.read_bytes()[before:]


def test_a_table_that_comes_again_takes_the_place_of_the_one_before(api: str) -> None:
    @flow(name="two-tables")
    def tell() -> None:
        report = PrefectReport("regenerate")
        for answered in (1, 2):
            report.table("lanes", [{"answered": answered}])

    with temporary_settings({PREFECT_API_URL: api}):
        tell()
    (shown,) = query(api, "artifacts", {"artifacts": {"key": {"any_": ["regenerate-lanes"]}}})
    assert json.loads(str(shown["data"])) == [{"answered": 2}]


@pytest.mark.soak
def test_setting_up_again_doubles_nothing(operated: Operated) -> None:
    before = [len(query(operated.api, what, {})) for what in ("automations", "deployments", "block_documents")]
    set_up(operated.api, "local")
    assert [len(query(operated.api, what, {})) for what in ("automations", "deployments", "block_documents")] == before


def start_training(operated: Operated, seed: int) -> str:
    """Start a training that never ends by itself; return its run once it has saved a checkpoint."""
    before = checkpoints()
    no_limit = {"placement": {"threads": 1}}  # a slot would come back a minute after the one who held it was killed
    run = operated.start("train/local", "train.steps=100000", f"train.seed={seed}", site=no_limit)
    until(lambda: checkpoints() > before)
    return run


def resumed(operated: Operated, run: str) -> int:
    """Return how often a training went on at a checkpoint."""
    return operated.logs(run).count("going on after step")


def alerts(api: str) -> list[str]:
    return [str(run["id"]) for run in query(api, "flow_runs", {"flows": {"name": {"any_": ["alert"]}}})]

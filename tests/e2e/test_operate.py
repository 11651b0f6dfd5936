"""Operated by Prefect: a real server, a worker, every deployment, and an S3 server for artifacts and results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL, temporary_settings

from deepspec.stages import STAGES
from deepspec.store import Store
from infra.prefect_setup import set_up
from infra.settings import default_root
from tests.e2e.conftest import ROOT, query
from tests.e2e.operated import Operated, environment, operate, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PREFECT = [sys.executable, "-m", "prefect"]


@pytest.fixture(scope="module")
def operated(api, tmp_path_factory):
    with operate(api, tmp_path_factory.mktemp("operated")) as found:
        yield found


@pytest.fixture(scope="module")
def built(operated):
    """The whole pipeline, started as a person would start it."""
    parameters = json.dumps(operated.parameters())
    command = [*PREFECT, "deployment", "run", "build-draft/local", "--params", parameters, "--watch"]
    done = subprocess.run(command, env=environment(operated.api), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return max(query(operated.api, "flow_runs", {}), key=lambda run: str(run["start_time"] or ""))


def test_everything_is_deployed_and_cron_runs_are_scheduled(operated):
    deployed = {f"{found['entrypoint']}": found for found in query(operated.api, "deployments", {})}
    assert {f"flows.stages.{stage}" for stage in STAGES} < set(deployed)
    assert deployed["flows.draft.build_draft"]["enforce_parameter_schema"]
    reevaluate = deployed["flows.reevaluate.reevaluate"]
    assert {found["slug"] for found in reevaluate["schedules"]} == {"nightly-baseline", "weekly-candidate"}
    its_runs = {"deployments": {"id": {"any_": [reevaluate["id"]]}}}
    runs = until(lambda: query(operated.api, "flow_runs", its_runs))
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}


def test_a_misspelt_parameter_is_refused_by_the_server(operated):
    parameters = '{"choices": {"targt": "x"}, "site": {}}'
    command = [*PREFECT, "deployment", "run", "build-draft/local", "--params", parameters]
    done = subprocess.run(command, env=environment(operated.api), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "targt" in done.stdout + done.stderr


@pytest.mark.soak
def test_a_run_publishes_to_s3_and_can_be_found_and_read(operated, built):
    store = Store(default_root())
    assert {key.split("/")[0] for key in store.list("") if key.endswith("manifest.json")} == {
        stage.kind for stage in STAGES.values()
    }
    assert [key for key in store.list("prefect-results") if "stages/train/" in key]
    assert {"target:target", "algorithm:dspark"} < set(built["tags"])
    shown = query(operated.api, "artifacts", {"limit": 200})
    assert {str(found["type"]) for found in shown} >= {"progress", "table", "image", "markdown"}
    assert {"plan-estimate", "stages", "train-progress", "release-report"} <= {str(found["key"]) for found in shown}
    assert {f"{stage}-artifact" for stage in STAGES} <= {str(found["key"]) for found in shown}
    words = [sys.executable, "-m", "flows.cli", "runs", "--tag", "algorithm:dspark"]
    listed = subprocess.run(words, env=environment(operated.api), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "build-draft" in listed.stdout
    assert "Completed" in listed.stdout


@pytest.mark.soak
def test_cancelled_resumed_killed_and_recovered(operated: Operated, built):
    """One long training: Cancel from the API, Retry, kill -9 of the engine, which the automation notices."""
    run = operated.start("train/local", "train.steps=100000")
    store = Store(default_root())
    until(lambda: [key for key in store.list("draft") if "/checkpoints/" in key])
    operated.set_state(run, type="CANCELLING")
    start = time.monotonic()
    until(lambda: not operated.processes(run), seconds=60)
    assert time.monotonic() - start < 20
    until(lambda: operated.state(run) == "Cancelled")

    operated.set_state(run, type="SCHEDULED", name="AwaitingRetry")
    until(lambda: operated.logs(run).count("going on after step") == 1)
    for engine in operated.processes(run, "prefect"):
        os.kill(engine, signal.SIGKILL)
    until(lambda: operated.logs(run).count("going on after step") == 2)
    recovered = [each for each in query(operated.api, "flow_runs", {}) if each["name"] == f"recover-{run}"]
    assert len(recovered) == 1
    operated.set_state(run, type="CANCELLING")
    until(lambda: operated.state(run) == "Cancelled" and not operated.processes(run))


@pytest.mark.soak
def test_setting_up_again_doubles_nothing(operated):
    before = [len(query(operated.api, what, {})) for what in ("automations", "deployments", "block_documents")]
    set_up(operated.api, "local")
    assert [len(query(operated.api, what, {})) for what in ("automations", "deployments", "block_documents")] == before


def test_a_regression_starts_the_alert_flow(operated):
    with temporary_settings({PREFECT_API_URL: operated.api}):
        emit_event(
            "deepspec.eval.regressed",
            resource={"prefect.resource.id": "deepspec.draft.abc"},
            payload={"regressions": ["gsm8k: 1.31, was 1.38"]},
        )
    (alert,) = until(lambda: alerts(operated.api))
    until(lambda: operated.state(alert) == "Completed")
    (artifact,) = query(operated.api, "artifacts", {"artifacts": {"key": {"any_": ["regression"]}}})
    assert "gsm8k: 1.31, was 1.38" in str(artifact["data"])


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_run_page_shows_its_artifacts(operated, built, tmp_path):
    picture = ROOT / "runs" / "run-page.png"
    picture.parent.mkdir(exist_ok=True)
    page = f"{operated.api.removesuffix('/api')}/runs/flow-run/{built['id']}?tab=Artifacts"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1400,1000"]
    browser = ["chromium", *options, f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
    shown = subprocess.run([*browser, "--dump-dom", page], capture_output=True, text=True, timeout=180, check=True)
    assert "evaluate-acceptance" in shown.stdout
    subprocess.run([*browser, f"--screenshot={picture}", page], capture_output=True, timeout=180, check=True)
    assert picture.stat().st_size > 20_000


def alerts(api: str) -> list[str]:
    return [str(run["id"]) for run in query(api, "flow_runs", {}) if run["name"] == "alert-deepspec.draft.abc"]

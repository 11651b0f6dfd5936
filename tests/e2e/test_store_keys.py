"""Work pools: people's changes stay; keys of the store lie in Secret blocks, which a pool names and each run gets."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration

from deepspec.errors import SpecError
from deepspec.store import Store
from infra.engines.managed import free_port
from infra.server.setup import ENVIRONMENTS, make_pool, set_up
from infra.server.up import s3_server, server, worker
from tests.given.server.operated import SIZES, write_inputs

BLOCKS = {"AWS_ACCESS_KEY_ID": "s3-id", "AWS_SECRET_ACCESS_KEY": "s3-secret"}


def save(api: str, values: Mapping[str, str]) -> None:
    with temporary_settings({PREFECT_API_URL: api}):
        for variable, block in BLOCKS.items():
            Secret(value=values[variable]).save(block, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["local", "kubernetes"])
def test_a_pool_tells_names_and_only_a_run_has_the_values(api: str, environment: str) -> None:
    values = {variable: f"value of {block}" for variable, block in BLOCKS.items()}
    save(api, values)
    place = replace(ENVIRONMENTS[environment], pool=f"keys-{environment}")
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        make_pool(client, place, BLOCKS)
        template = client.read_work_pool(place.pool).base_job_template
        assert "{{ prefect.blocks.secret.s3-secret }}" in json.dumps(template)
        assert "value of" not in json.dumps(template)
        run: Any = asyncio.run(ProcessJobConfiguration.from_template_and_values(template, {"env": {"OTHER": "stays"}}))
        assert {name: run.env[name] for name in (*BLOCKS, "OTHER")} == {**values, "OTHER": "stays"}
        with pytest.raises(SpecError, match="no Secret block 'nowhere' on this Prefect server"):
            make_pool(client, place, {"AWS_SECRET_ACCESS_KEY": "nowhere"})


@pytest.mark.slow
def test_a_pool_that_is_made_again_keeps_what_people_changed_and_gets_what_it_lacks(api: str) -> None:
    save(api, dict.fromkeys(BLOCKS, "value"))
    place = replace(ENVIRONMENTS["kubernetes"], pool="keys-changed")
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        make_pool(client, place, BLOCKS)
        shipped = client.read_work_pool(place.pool).base_job_template
        changed = deepcopy(shipped)
        changed["variables"]["properties"]["memory"]["default"] = "64Gi"
        changed["job_configuration"]["job_manifest"]["spec"]["backoffLimit"] = 2
        lacking = deepcopy(changed)
        del lacking["job_configuration"]["pod_watch_timeout_seconds"]
        client.update_work_pool(
            place.pool, WorkPoolUpdate(base_job_template=lacking, concurrency_limit=3, is_paused=True)
        )
        make_pool(client, place, {})
        found = client.read_work_pool(place.pool)
    assert found.base_job_template == changed
    assert (found.concurrency_limit, found.is_paused) == (3, True)


@pytest.mark.soak
def test_a_worker_without_keys_runs_on_a_store_that_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    for name, folder in {
        "HOME": tmp_path,
        "DEEPSPEC_DATA_DIR": tmp_path / "data",
    }.items():  # the second is not there yet
        monkeypatch.setenv(name, str(folder))
    logs = tmp_path / "logs"
    with s3_server(logs) as variables, server(free_port(), logs) as url:
        for name, value in {**variables, "PREFECT_WORKER_QUERY_SECONDS": "1"}.items():
            monkeypatch.setenv(name, value)
        for name in BLOCKS:
            monkeypatch.delenv(name)
        save(url, variables)
        pool = set_up(url, "local", BLOCKS)
        with worker(url, pool, logs):
            ran = run_prepare(url, tmp_path)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        for name in BLOCKS:
            monkeypatch.setenv(name, variables[name])
        assert [key for key in Store(variables["DEEPSPEC_ROOT"]).list("prompts") if key.endswith("manifest.json")]


def run_prepare(api: str, data: Path) -> subprocess.CompletedProcess[str]:
    """Start one stage as a person would, and wait for it."""
    choices = {
        "target": str(data / "target"),
        "answers": str(data / "answers.jsonl"),
        "benchmarks_dir": str(data / "questions"),
        "overrides": list(SIZES),
    }
    parameters = json.dumps({"choices": choices, "site": {"placement": {"threads": 1}}})
    command = [sys.executable, "-m", "prefect", "deployment", "run", "prepare/local", "--params", parameters, "--watch"]
    env = {**os.environ, "PREFECT_API_URL": api}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)

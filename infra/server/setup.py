"""What a Prefect server holds for us, as tables: pools, limits, variables, result storage, automations, deployments.

Everything is found by its name, so `set_up` may be called again at any time. Deployments and automations follow their
files. Pools, limits and variables are where people change things: what is there stays, only what is missing is added.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    VariableCreate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from deepspec.errors import ChildError, SpecError, UnknownNameError
from infra.settings import data_dir, default_root, environment, server_auth, work_dir
from infra.shipped import DEPLOYMENTS, INFRA

BLOCK = "deepspec"
"""Name of the result storage block, local or remote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """One kind of place where runs happen: its deployments, and the pool that they go to."""

    file: str
    pool: str
    type: str = "process"
    runs: int
    """Runs at a time."""
    template: str | None = None
    """File of the base job template, below `infra`; None: the one that comes with the type."""


ENVIRONMENTS: Mapping[str, Environment] = {
    "local": Environment(file="prefect.yaml", pool="deepspec-local", runs=8),
    "gpu": Environment(file="gpu.yaml", pool="deepspec-gpu", runs=1),
    "slurm": Environment(file="slurm.yaml", pool="deepspec-slurm", runs=64),
    "kubernetes": Environment(
        file="kubernetes.yaml",
        pool="deepspec-kubernetes",
        type="kubernetes",
        runs=64,
        template="kubernetes/base-job-template.yaml",
    ),
}

LIMITS: Mapping[str, int] = {"deepspec-machine": 1, "deepspec-gpu": 1}
"""Global concurrency limits: stages that compute at a time where a deployment's `site.limit` names one."""

VARIABLES: Mapping[str, Any] = {"deepspec_crash_retries": 2, "deepspec_notify": "none"}


def set_up(api: str, name: str, secrets: Mapping[str, str] | None = None) -> str:
    """Make or update everything that an environment needs on a server; return the name of its pool.

    Args:
        api: of the server.
        name: of the environment.
        secrets: variable of a run -> Secret block that holds it, read by the worker when a run starts.

    Raises:
        UnknownNameError: there is no such environment.
        SpecError: there is no such block.
        ChildError: Prefect refused a deployment.
    """
    if name not in ENVIRONMENTS:
        raise UnknownNameError("environment", name, ENVIRONMENTS)
    place = ENVIRONMENTS[name]
    with temporary_settings(client_settings(api)):
        with get_client(sync_client=True) as client:
            make_pool(client, place, secrets or {})
            for limit, slots in LIMITS.items():
                _make_limit(client, limit, slots)
            for variable, value in VARIABLES.items():
                if client.read_variable_by_name(variable) is None:
                    client.create_variable(VariableCreate(name=variable, value=value))
        result_storage(default_root()).save(BLOCK, overwrite=True)
        deploy(api, DEPLOYMENTS / place.file)
        with get_client(sync_client=True) as client:
            _automate(client, name)
    return place.pool


def make_pool(client: SyncPrefectClient, place: Environment, secrets: Mapping[str, str]) -> None:
    """Make the work pool of an environment; to one that is there, add the secrets and what its template lacks.

    A pool tells the names of the blocks that hold the secrets. A deployment file cannot do so: `prefect deploy` puts
    the value itself into the deployment.

    Raises:
        SpecError: there is no such block.
    """
    references = {variable: _reference(client, block) for variable, block in secrets.items()}
    shipped = ProcessWorker.get_default_base_job_template()
    if place.template is not None:
        shipped = yaml.safe_load((INFRA / place.template).read_text())
    shipped["variables"]["properties"]["env"]["default"] = references
    pool = WorkPoolCreate(name=place.pool, type=place.type, concurrency_limit=place.runs, base_job_template=shipped)
    try:
        client.create_work_pool(pool)
    except ObjectAlreadyExists:
        template = _completed(client.read_work_pool(place.pool).base_job_template, shipped)
        template["variables"]["properties"]["env"]["default"] |= references
        client.update_work_pool(place.pool, WorkPoolUpdate(base_job_template=template))


def client_settings(api: str) -> dict[Any, Any]:
    """Return the settings under which this process talks to a server."""
    return {PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: server_auth()}


def result_storage(root: str) -> LocalFileSystem | RemoteFileSystem:
    """Return where Prefect keeps results (references of a few hundred bytes): beside the artifacts."""
    if root.startswith("s3://"):
        return RemoteFileSystem(basepath=f"{root}/prefect-results")
    return LocalFileSystem(basepath=str(Path(root) / "prefect-results"))


def worker_environment(api: str) -> dict[str, str]:
    """Return the variables of a worker and of its runs."""
    kind, auth = result_storage(default_root()).get_block_type_slug(), server_auth()
    return {
        **({"PREFECT_API_AUTH_STRING": auth} if auth else {}),
        "PREFECT_API_URL": api,
        "PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": f"{kind}/{BLOCK}",
        "DEEPSPEC_HOME": str(work_dir()),
        "DEEPSPEC_DATA_DIR": str(data_dir()),
        "DEEPSPEC_ROOT": default_root(),
    }


def deploy(api: str, file: Path) -> None:
    """Create or update every deployment of a file.

    Raises:
        ChildError: Prefect refused one.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    env = environment(worker_environment(api))
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ChildError(" ".join(command), done.returncode, (done.stdout + done.stderr)[-2000:])


def _completed(found: dict[str, Any], shipped: dict[str, Any]) -> dict[str, Any]:
    """Return what was found, with what only the shipped one has."""
    both = {key: _completed(found[key], told) for key, told in shipped.items() if isinstance(found.get(key), dict)}
    return {**shipped, **found, **both}


def _make_limit(client: SyncPrefectClient, name: str, slots: int) -> None:
    try:
        client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))


def _reference(client: SyncPrefectClient, block: str) -> str:
    try:
        client.read_block_document_by_name(block, "secret", include_secrets=False)
    except ObjectNotFound:
        raise SpecError(f"no Secret block {block!r} on this Prefect server; make it first, in its UI") from None
    return f"{{{{ prefect.blocks.secret.{block} }}}}"


def _automate(client: SyncPrefectClient, name: str) -> None:
    """Create or update the automations, on or off as they are; what they start are deployments of the environment."""
    known = {found.name: found for found in client.read_automations()}
    for told in yaml.safe_load((DEPLOYMENTS / "automations.yaml").read_text()):
        found = known.get(told["name"])
        actions = [_action(client, action, name) for action in told["actions"]]
        automation = AutomationCore.model_validate({**told, "actions": actions})
        if found is None:
            client.create_automation(automation)
        else:
            client.update_automation(found.id, automation.model_copy(update={"enabled": found.enabled}))


def _action(client: SyncPrefectClient, action: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an action with the id of the deployment that it names."""
    if "deployment" not in action:
        return action
    rest = {key: value for key, value in action.items() if key != "deployment"}
    found = client.read_deployment_by_name(f"{action['deployment']}/{name}")
    return {**rest, "source": "selected", "deployment_id": found.id}

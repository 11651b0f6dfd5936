"""Files for machines: each is held against its schema or its linter, and against the code that it has to agree with."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.server.setup import ENVIRONMENTS
from infra.settings import nodes
from infra.shipped import DEPLOYMENTS
from infra.shipped import PACKAGES as HOME

KUBERNETES = HOME / "infra" / "kubernetes"
MANIFESTS = [path for path in sorted(KUBERNETES.glob("*.yaml")) if path.name != "base-job-template.yaml"]
VARIABLE = "{{ "


def tool(name: str) -> str:
    """Return a linter beside this Python, or skip."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed (pip install -e '.[dev]')")
    return str(path)


def checked(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def filled(value: Any, variables: dict[str, Any]) -> Any:
    """Return a job template with its variables filled in, as a worker does it."""
    if isinstance(value, dict):
        return {key: filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, variables) for item in value]
    if isinstance(value, str) and value.startswith(VARIABLE) and value.endswith("}}"):
        return variables[value.strip("{} ")]
    if isinstance(value, str) and VARIABLE in value:
        for name, told in variables.items():
            value = value.replace(f"{VARIABLE}{name} }}}}", str(told))
    return value


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid_kubernetes(path: Path) -> None:
    checked(tool("kubernetes-validate"), "--strict", "--quiet", str(path))


def test_the_job_template_makes_a_valid_job(tmp_path: Path) -> None:
    linter = tool("kubernetes-validate")
    template = yaml.safe_load((KUBERNETES / "base-job-template.yaml").read_text())
    defaults = {name: told.get("default") for name, told in template["variables"]["properties"].items()}
    given = {"name": "run", "command": ["true"], "env": [], "labels": {}, "gpus": "8"}
    manifest = filled(template["job_configuration"]["job_manifest"], {**defaults, **given})
    assert manifest["spec"]["backoffLimit"] == 0
    assert manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    checked(linter, "--strict", "--quiet", str(tmp_path / "job.yaml"))


def test_the_worker_may_start_jobs_and_nothing_more() -> None:
    roles = [role for role in yaml.safe_load_all((KUBERNETES / "worker.yaml").read_text()) if role["kind"] == "Role"]
    rules = [rule for role in roles for rule in role["rules"]]
    assert not [rule for rule in rules if "*" in str(rule) or "secrets" in rule["resources"]]
    written = {
        resource for rule in rules if {"create", "delete"} & set(rule["verbs"]) for resource in rule["resources"]
    }
    assert written == {"jobs"}


def test_the_dockerfile_has_no_findings() -> None:
    checked(tool("hadolint"), str(HOME / "infra" / "Dockerfile"))


def test_the_image_installs_what_the_lock_pins() -> None:
    """After a change of requirements.lock: make lock."""
    pins = {pin.partition(";")[0].replace(".", "-") for pin in (HOME / "requirements.lock").read_text().split()}
    hashed = (HOME / "requirements.hashed.lock").read_text()
    assert {line.split(" ")[0].replace(".", "-") for line in hashed.splitlines() if "==" in line} == pins


def test_the_image_copies_what_is_there_and_installs_the_torch_of_the_lock() -> None:
    ignored = set((HOME / ".dockerignore").read_text().split())
    steps = (HOME / "infra" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [step.split()[1] for step in steps if step.startswith("COPY ") and "--from" not in step]
    assert copied == ["requirements.hashed.lock", "."]
    assert not {"deployments", "infra", "deepspec", "requirements.hashed.lock", "pyproject.toml", "README.md"} & ignored
    (installed,) = {word for step in steps for word in step.split() if word.startswith("torch==")}
    assert installed in (HOME / "requirements.lock").read_text().split()
    (python,) = {step.split()[1].partition("-")[0] for step in steps if step.startswith("FROM ")}
    assert python.startswith("python:3.11")


def test_the_compose_file_is_valid() -> None:
    checked(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(HOME / "infra" / "compose.yaml"))


def test_only_loopback_is_published() -> None:
    services = yaml.safe_load((HOME / "infra" / "compose.yaml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ()))


def test_runs_may_touch_the_store_and_no_other_key() -> None:
    policy = json.loads((HOME / "infra" / "s3" / "policy.json").read_text())
    allowed = [statement for statement in policy["Statement"] if statement["Effect"] == "Allow"]
    assert not [action for statement in allowed for action in statement["Action"] if "*" in action]
    assert {statement["Resource"] for statement in allowed} == {
        "arn:aws:s3:::deepspec",
        "arn:aws:s3:::deepspec/store/*",
    }


def test_the_slurm_script_is_shell() -> None:
    checked("bash", "-n", str(HOME / "infra" / "slurm" / "worker.sbatch"))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_deploys_flows_that_exist_to_its_pool(name: str) -> None:
    place = ENVIRONMENTS[name]
    deployed = yaml.safe_load((DEPLOYMENTS / place.file).read_text())["deployments"]
    assert {found["work_pool"]["name"] for found in deployed} == {place.pool}
    assert {found["name"] for found in deployed} == {name}
    modules = {found["entrypoint"].rpartition(".")[0] for found in deployed}
    assert all(importlib.util.find_spec(module) for module in modules)
    assert {"flows.alert.alert", "flows.recover.recover"} <= {found["entrypoint"] for found in deployed}


def test_several_machines_are_told_by_kubernetes_or_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEEPSPEC_NODES", "JOB_COMPLETION_INDEX", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    assert (nodes().count, nodes().number) == (1, 0)
    monkeypatch.setenv("DEEPSPEC_NODES", "4")
    monkeypatch.setenv("DEEPSPEC_FIRST_NODE", "train-0:29500")
    monkeypatch.setenv("SLURM_NODEID", "2")
    assert nodes().number == 2
    monkeypatch.setitem(os.environ, "JOB_COMPLETION_INDEX", "3")
    assert (nodes().number, nodes().first) == (3, "train-0:29500")

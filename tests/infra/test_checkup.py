"""What `doctor` tries on a machine: each finding says what it saw, and where that is bad how to mend it."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NoReturn

import httpx
import pytest

from cli.doctor import examine
from deepspec.errors import StoreError
from deepspec.formats.recipe import DraftRecipe
from deepspec.placement import Placement
from deepspec.store import Store
from flows.choices import Choices, choose_site, named_endpoints
from infra.checkup import machine
from infra.checkup.engine import serves
from infra.checkup.store import OPERATIONS, clock_told, operations
from infra.engines.managed import free_port
from infra.shipped import INFRA

GIB = 2**30


def placed(**more: object) -> Placement:
    return Placement(scratch=Path("scratch"), **more)


def test_a_slow_disk_is_told_with_what_helps(tmp_path: Path) -> None:
    assert machine.judged_disk(tmp_path, 390e6, 1370e6).told == ()
    (line,) = machine.judged_disk(tmp_path, 40e6, 1370e6).told
    assert "DEEPSPEC_DATA_DIR" in line


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert "MB/s" in machine.disk(tmp_path).detail
    assert list(tmp_path.iterdir()) == []


def test_small_shared_memory_matters_to_cards_and_to_several_ranks() -> None:
    assert machine.judged_shared_memory(GIB // 16, placed()).told == ()
    assert machine.judged_shared_memory(16 * GIB, placed(device="cuda", processes=8)).told == ()
    (line,) = machine.judged_shared_memory(GIB // 16, placed(device="cuda")).told
    assert "--shm-size" in line
    assert machine.judged_shared_memory(GIB // 16, placed(processes=2)).told == (line,)


def test_few_open_files_are_told_with_the_command_that_this_user_may_give() -> None:
    assert machine.judged_open_files(65536, 65536).told == ()
    assert (
        machine.judged_open_files(resource.RLIM_INFINITY, resource.RLIM_INFINITY).detail == "no limit, at most no limit"
    )
    assert "ulimit -n 65536" in machine.judged_open_files(1024, 65536).told[0]
    assert "limits.conf" in machine.judged_open_files(1024, 1024).told[0]


def test_clocks_that_are_apart_are_told() -> None:
    assert clock_told(-59.0) == ()
    (line,) = clock_told(-3600.0)
    assert "3,600 s apart" in line


def test_every_operation_is_tried_and_nothing_is_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert "write, read, list, write once" in operations(store).detail
    assert store.list("") == []


class Refusing(Store):
    """A folder that cannot be listed."""

    def entries(self, prefix: str) -> NoReturn:
        raise StoreError("AccessDenied")


def test_what_is_refused_is_named_with_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"refuses to list \(needs s3:ListBucket\): AccessDenied$"):
        operations(Refusing(tmp_path))


def test_the_policy_that_is_shipped_allows_what_is_tried() -> None:
    told = json.loads((INFRA / "s3" / "policy.json").read_text())
    allowed = {action for row in told["Statement"] if row["Effect"] == "Allow" for action in row["Action"]}
    needed = {name for row in OPERATIONS.values() for name in row.permission.split(", ")}
    assert needed <= allowed


@contextmanager
def guarded_s3(allowed: list[str]) -> Iterator[dict[str, str]]:
    """An S3 server that asks for permissions, and the keys of a user who has some."""
    port, admin = (
        free_port(),
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a", "AWS_DEFAULT_REGION": "us-east-1"},
    )
    url = f"http://127.0.0.1:{port}"
    env = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "4"}  # as many as make bucket, user, policy and key
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], env=env, stderr=subprocess.DEVNULL
    ) as served:
        try:
            end = time.monotonic() + 120
            while time.monotonic() < end:
                try:
                    httpx.get(f"{url}/moto-api/")
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            boto3 = pytest.importorskip("boto3")
            keys = {"aws_access_key_id": "a", "aws_secret_access_key": "a", "region_name": "us-east-1"}
            boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="guarded")
            iam = boto3.client("iam", endpoint_url=url, **keys)
            iam.create_user(UserName="run")
            policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": allowed, "Resource": "*"}]}
            iam.put_user_policy(UserName="run", PolicyName="some", PolicyDocument=json.dumps(policy))
            key = iam.create_access_key(UserName="run")["AccessKey"]
            yield {
                **admin,
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            }
        finally:
            served.kill()


@pytest.mark.soak
def test_a_server_that_asks_for_permissions_refuses_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    with guarded_s3(["s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:AbortMultipartUpload"]) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreError) as raised:
            operations(Store("s3://guarded/store"))
    assert "list uploads (needs s3:ListBucketMultipartUploads)" in str(raised.value)
    assert "delete (needs s3:DeleteObject)" in str(raised.value)
    assert "needs s3:PutObject)" not in str(raised.value)


def program(folder: Path, name: str, script: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_an_engine_in_python_tells_by_its_sources_what_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "vllm" / "config").mkdir(parents=True)
    (packages / "vllm" / "config" / "speculative.py").write_text('Methods = Literal["eagle3", "dflash"]')
    (packages / "vllm-0.11.0.dist-info").mkdir()
    program(tmp_path, "vllm", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert serves("vllm", DraftRecipe(algorithm="eagle3")) == ("vllm 0.11.0 serves eagle3", ())
    seen = serves("vllm", DraftRecipe(algorithm="dspark"))
    assert seen.detail == "vllm 0.11.0 serves dflash, eagle3"
    assert "it does not serve dspark" in seen.told[0]
    assert serves("vllm", DraftRecipe(algorithm="dflash2")).told == ()
    assert "it does not serve xpress" in serves("vllm", DraftRecipe(algorithm="xpress")).told[0]


def test_llama_server_tells_by_its_options_what_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "llama-server", "echo 'version: 7000 (abc)'; echo '--spec-type none,draft-eagle3,draft-dspark'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    assert serves("llama.cpp", DraftRecipe(algorithm="dspark")) == ("llama.cpp 7000 serves dspark", ())
    assert serves("llama.cpp", DraftRecipe(algorithm="peagle")).told
    monkeypatch.setenv("PATH", "/nowhere")
    assert serves("llama.cpp", DraftRecipe()) == ("llama.cpp is not here", ())


class Engine(BaseHTTPRequestHandler):
    """Tells its version as vLLM does."""

    def do_GET(self) -> None:
        told = {"/version": {"version": "0.32.0"}, "/v1/models": {"data": [{"id": "target"}]}}.get(self.path)
        self.send_response(200 if told else 404)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_doctor_tells_the_version_of_an_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPSPEC_DATA_DIR", str(tmp_path))
    server = HTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    examine(Choices(), choose_site(str(tmp_path / "store"), named_endpoints([url], "target")), as_json=True)
    server.shutdown()
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)["checks"]}
    assert "(version says 0.32.0) serves target" in rows["engine"]["detail"]
    assert rows["store"]["result"] == rows["open files"]["result"] == "ok"

"""The words by which vLLM gives states, and which version it is."""

import ast
import json
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from deepspec.cache.spec import CacheOptions
from deepspec.errors import EngineError, TargetError
from deepspec.states.digest import digest_of
from infra.engines import states
from infra.engines.managed import ManagedEngines, command
from infra.engines.states import CONNECTOR, ONE_TABLE, StatesServer, engine_version, managed
from tests.given.targets import shipped
from tests.given.targets.tiny import write_target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


def server(target: Path, tmp_path: Path, **options: object) -> StatesServer:
    return StatesServer(options=CacheOptions(states="vllm", **options), folder=target, staging=tmp_path)


def worded(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def test_an_engine_counts_layers_from_the_embedding_and_gives_the_last_before_its_norm(
    target: Path, tmp_path: Path
) -> None:
    words = worded(server(target, tmp_path, layers=(-1, 1, 3)).words())
    speculative, transfer = json.loads(words["--speculative-config"]), json.loads(words["--kv-transfer-config"])
    assert speculative["method"] == "extract_hidden_states"
    assert speculative["draft_model_config"]["hf_config"] == {"eagle_aux_hidden_state_layer_ids": [0, 2, 4, 6]}
    assert transfer["kv_connector_extra_config"] == {"shared_storage_path": str(tmp_path)}
    assert words["--dtype"] == "float32"  # what the checkpoint is, and vLLM would make bfloat16 of it


def test_precision_and_quantisation_are_said_as_they_are_set(target: Path, tmp_path: Path) -> None:
    words = worded(server(target, tmp_path, dtype="bfloat16", engine_quantization="fp8").words())
    assert (words["--dtype"], words["--quantization"]) == ("bfloat16", "fp8")


@pytest.mark.parametrize(
    ("told", "one"),
    [
        ({}, False),
        ({"sliding_window": 64}, True),
        ({"sliding_window": 64, "use_sliding_window": False}, False),
        ({"sliding_window": None, "layer_types": ["full_attention", "sliding_attention"] * 3}, True),
        ({"sliding_window": 64, "layer_types": ["linear_attention", "full_attention"] * 3}, False),
    ],
)
def test_of_a_target_with_windows_an_engine_keeps_one_table_of_blocks(
    target: Path, tmp_path: Path, told: dict[str, object], one: bool
) -> None:
    """Which one with recurrent states cannot; of one without windows it is the same, and not said."""
    folder = tmp_path / "windowed"
    shutil.copytree(target, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **told}))
    assert (ONE_TABLE in server(folder, tmp_path).words()) is one


def test_an_engine_is_a_producer(target: Path, tmp_path: Path) -> None:
    """Of another vLLM delivers what a step answered that it had begun before it took the request's blocks."""
    words = worded(server(target, tmp_path).words())
    assert json.loads(words["--kv-transfer-config"])["kv_role"] == "kv_producer"


def test_layers_that_the_target_has_not_are_refused(target: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"cannot capture layers \[9\]"):
        server(target, tmp_path, layers=(9,)).words()


def test_an_engine_is_not_asked_for_more_positions_than_the_target_has(target: Path, tmp_path: Path) -> None:
    assert server(target, tmp_path, max_length=100).context == 101
    assert server(target, tmp_path).context == 512


def test_a_run_starts_vllm_with_the_same_words(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.engines.managed.program", lambda kind, name: f"/bin/{name}")
    wanted = server(target, tmp_path)
    engines, served = managed(ManagedEngines(kind="vllm", arguments="--enforce-eager"), wanted)
    words = command(engines, served, 1234)
    assert words[:3] == ["/bin/vllm", "serve", str(target)]
    assert words[-len(wanted.words()) - 1 :] == [*wanted.words(), "--enforce-eager"]
    assert served.env == {"PYTHONPATH": str(CONNECTOR)}
    assert managed(ManagedEngines(), wanted)[0].kind == "vllm"


def test_engines_of_another_kind_are_refused(target: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cache\.states=vllm and --engine sglang; give --engine vllm"):
        managed(ManagedEngines(kind="sglang"), server(target, tmp_path))


def test_engine_args_prints_one_line_that_a_shell_reads(target: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["engine-args", "--target", str(target), "--staging", str(tmp_path), "--port", "8123"]
    )
    assert done.exit_code == 0, done.output
    variable, *words = shlex.split(done.output)
    assert variable == f"PYTHONPATH={CONNECTOR}"
    assert words[:3] == ["vllm", "serve", str(target)]
    assert words[words.index("--port") + 1] == "8123"
    assert str(tmp_path) in words[-1]


def test_engine_args_names_the_layer_that_heads_read(tmp_path: Path) -> None:
    target = shipped.write_target(tmp_path / "target", "qwen3")
    told = ["engine-args", "--target", str(target), "--algorithm", "mtp", "--staging", str(tmp_path)]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.output
    words = shlex.split(done.output)
    method = json.loads(words[words.index("--speculative-config") + 1])
    assert method["draft_model_config"]["hf_config"]["eagle_aux_hidden_state_layer_ids"] == [4]


def test_the_connector_is_alone_on_the_path_and_imports_nothing_of_ours() -> None:
    assert {path.name for path in CONNECTOR.iterdir()} - {"__pycache__"} == {"__init__.py", "deepspec_states.py"}
    tree = ast.parse((CONNECTOR / "deepspec_states.py").read_text())
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    roots = {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names)
    assert roots == {"torch", "vllm", "safetensors", "huggingface_hub"}


def connector_function(name: str) -> Any:
    """Return a function of the connector without importing vLLM."""
    tree = ast.parse((CONNECTOR / "deepspec_states.py").read_text())
    wanted = {"digest_of", "checksum", "BLOCKS"}
    kept = [node for node in tree.body if _names(node) & wanted]
    space: dict[str, object] = {}
    exec("import hashlib, torch, zlib\nfrom pathlib import Path\nfrom typing import Any\n", space)
    exec(compile(ast.Module(kept, []), "connector", "exec"), space)
    return space[name]


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {name.id for each in node.targets for name in ast.walk(each) if isinstance(name, ast.Name)}
    return set()


def test_engine_and_run_make_one_digest_of_a_model(target: Path, tmp_path: Path) -> None:
    assert connector_function("digest_of")(target) == digest_of(target)
    other = write_target(tmp_path / "other", seed=1)
    assert digest_of(other) != digest_of(target)


def test_engine_and_run_make_one_checksum_of_a_file() -> None:
    import torch

    from deepspec.states.file import states_checksum

    tensors = {"hidden_states": torch.randn(3, 2, 4).bfloat16(), "token_ids": torch.tensor([1, 2, 3])}
    assert str(connector_function("checksum")(tensors)) == states_checksum(
        tensors["hidden_states"], tensors["token_ids"]
    )


class Telling(HTTPServer):
    """Tells a version and models."""

    def __init__(self, version: str, models: object) -> None:
        super().__init__(("127.0.0.1", 0), Says)
        self.told = {"/version": {"version": version}, "/v1/models": models}


class Says(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Telling)
        told = self.server.told.get(self.path)
        self.send_response(404 if told is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Callable[..., str]]:
    servers = []

    def serve(version: str, models: object = None) -> str:
        http = Telling(version, models)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        servers.append(http)
        return f"http://127.0.0.1:{http.server_port}/v1"

    yield serve
    for http in servers:
        http.shutdown()
        http.server_close()


def test_endpoints_say_their_version_and_of_several_make_no_cache(endpoint: Callable[..., str]) -> None:
    one, same, other = endpoint("0.32.0"), endpoint("0.32.0"), endpoint("0.33.0")
    assert engine_version([one, same]) == "0.32.0"
    with pytest.raises(EngineError, match=r"several versions .*0\.32\.0.*0\.33\.0"):
        engine_version([one, other])


def test_a_server_of_sglang_is_refused_with_the_reason(endpoint: Callable[..., str]) -> None:
    url = endpoint("0.5.23", {"data": [{"id": "target", "owned_by": "sglang"}]})
    with pytest.raises(
        EngineError, match=r"is an SGLang server, and states of SGLang .*without the last layer"
    ) as raised:
        engine_version([endpoint("0.32.0"), url])
    assert "\n" not in str(raised.value)
    for models in ({"data": [{"id": "target", "owned_by": "vllm"}]}, {"data": None}, [1], {"data": ["x"]}):
        assert engine_version([endpoint("0.32.0", models)]) == "0.32.0"


def test_a_refusal_of_sglang_is_no_fault_of_its_answer(
    endpoint: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kind of error it is: what is suppressed is what the server says, not what is made of it."""

    class RefusedError(EngineError, ValueError):
        pass

    monkeypatch.setattr("infra.engines.states.EngineError", RefusedError)
    with pytest.raises(RefusedError, match="is an SGLang server, and states of SGLang"):
        engine_version([endpoint("0.5.23", {"data": [{"id": "target", "owned_by": "sglang"}]})])


def test_an_endpoint_that_says_no_version_is_one_line() -> None:
    with pytest.raises(EngineError, match=r"does not say which version .*; start it, or set cache\.engine_version"):
        engine_version(["http://127.0.0.1:9/v1"])


def test_without_endpoints_the_interpreter_of_the_installed_vllm_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho INFO starting\necho 0.31.1\n")
    interpreter.chmod(0o755)
    program = tmp_path / "vllm"
    program.write_text(f"#!{interpreter}\nimport vllm\n")
    monkeypatch.setattr(states, "program", lambda kind, name: str(program))
    assert engine_version([]) == "0.31.1"

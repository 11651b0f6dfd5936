"""Engines that a run starts itself and ends with itself: one table of commands, one port and one log file each.

An engine serves the target through an OpenAI-compatible API on loopback. `start_engines` yields endpoints once
every engine says that it is healthy; leaving the block, or losing the process in any way, ends them
(`infra.processes.launch`).
An engine that ends by itself in between is started again on its port: whoever asks it sees it come back.
"""

import os
import shlex
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field

from deepspec.errors import ChildError, EngineError, UnknownNameError
from deepspec.families import read_folder
from deepspec.placement import Endpoint
from infra.processes.launch import Child, start_guarded

POLL_SECONDS = 0.2
WATCH_SECONDS = 1.0
MOST_RESTARTS = 3
"""Times that one engine is started again before it is left dead."""
LOOPBACK = "127.0.0.1"
PROMPT_ROOM = 2048
"""Tokens of context that our own engines have for a prompt, beside the answer."""
SMALL_FILE = 512 << 20
"""Bytes of a model up to which several engines of few threads answer more than one of many: its threads would wait for
each other at every layer, and memory holds the model more than once."""
MOST_ALIKE = 4
"""Engines that are started of themselves for such a model, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineKind:
    """How one engine is started."""

    command: str
    """Words with places to fill: python, model, name, port, slots, context, all_context, threads, gpus."""
    serves: Literal["file", "folder"]
    """What it reads: a GGUF file, or a Hugging Face folder."""
    slots: int
    """Requests decoded together, unless told otherwise."""
    start_seconds: float
    """How long it may take until it is healthy."""
    by_cores: bool = False
    """Whether it computes on this machine's cores, which several of its kind can share."""


ENGINES: Mapping[str, EngineKind] = {
    "xllamacpp": EngineKind(
        command="{python} -m infra.engines.llama_cpp --model {model} --name {name} --port {port} --slots {slots} "
        "--context {context} --threads {threads}",
        serves="file",
        slots=8,
        start_seconds=300,
        by_cores=True,
    ),
    "llama.cpp": EngineKind(
        command="llama-server --model {model} --alias {name} --host 127.0.0.1 --port {port} --parallel {slots} "
        "--ctx-size {all_context} --threads {threads} --jinja",
        serves="file",
        slots=8,
        start_seconds=300,
        by_cores=True,
    ),
    "vllm": EngineKind(
        command="vllm serve {model} --served-model-name {name} --host 127.0.0.1 --port {port} --max-num-seqs {slots} "
        "--max-model-len {context} --tensor-parallel-size {gpus}",
        serves="folder",
        slots=256,
        start_seconds=1800,
    ),
    "sglang": EngineKind(
        command="sglang serve --model-path {model} --served-model-name {name} --host 127.0.0.1 --port {port} "
        "--max-running-requests {slots} --context-length {context} --tp-size {gpus}",
        serves="folder",
        slots=256,
        start_seconds=1800,
    ),
}


class ManagedEngines(BaseModel):
    """Which engines a run starts where it is given no endpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = "xllamacpp"
    """A row of `ENGINES`."""
    count: int | None = Field(default=None, gt=0)
    """Engines to start; with `gpus`, one for each of its entries instead. None: one, and of an engine that computes on
    the cores up to four for a small model."""
    gpus: tuple[str, ...] = ()
    """GPUs of each engine, as CUDA numbers them: "0", or "0,1" for one engine that spans two."""
    slots: int | None = Field(default=None, gt=0)
    """Requests decoded together by one engine; None: what the table says."""
    context: int | None = Field(default=None, gt=0)
    """Tokens of one request, prompt and answer together; None: enough for a prompt of 2048."""
    arguments: str = ""
    """More words for each engine's command, quoted as for a shell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What the engines serve."""

    name: str
    """Name under which the target is served."""
    gguf: Path | None = None
    """The target as a GGUF file."""
    folder: Path | None = None
    """The target as a Hugging Face folder."""
    context: int = 2048
    """Tokens of one request, unless the engines are told otherwise."""
    threads: int | None = None
    """CPU threads of one engine; None: an even share of the cores."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further variables of the engines."""


class _Engine:
    """One engine on its port.

    Args:
        words: its command.
        port: where it serves.
        log: its output.
        env: further variables.
    """

    def __init__(self, words: Sequence[str], port: int, log: Path, env: Mapping[str, str]) -> None:
        self.port = port
        self._start = partial(start_guarded, words, log_path=log, env=env)
        self._running = ExitStack()
        self._child = self._running.enter_context(self._start())
        self._restarts = 0

    def check(self) -> Child:
        """Return the process while it runs; ChildError where it has ended."""
        self._child.check()
        return self._child

    def revive(self) -> None:
        """Start the engine again where it has ended, a few times."""
        if self._restarts == MOST_RESTARTS:
            return
        try:
            self.check()
        except ChildError:
            self._restarts += 1
            self.stop()
            self._child = self._running.enter_context(self._start())

    def stop(self) -> None:
        """End the process."""
        self._running.close()


@contextmanager
def start_engines(engines: ManagedEngines, served: Served, log_folder: Path) -> Iterator[tuple[Endpoint, ...]]:
    """Start the engines, yield their endpoints when all are healthy, and end them with the block.

    Args:
        engines: which engines to start.
        served: what they serve.
        log_folder: each engine's output goes to `engine-<n>.log` here.

    Raises:
        EngineError: an engine is not installed, ended, or was not healthy in time; the message has its last lines.
    """
    gpus: tuple[str | None, ...] = engines.gpus or (None,) * number_of(engines, served)
    with ExitStack() as stack:
        started: list[_Engine] = []
        for number, gpu in enumerate(gpus):
            port = free_port()
            words = command(engines, served, port, gpu)
            env = {**_variables(_threads(engines, served), gpu), **served.env}
            started.append(_Engine(words, port, log_folder / f"engine-{number}.log", env))
            stack.callback(started[-1].stop)
        end = time.monotonic() + kind_named(engines.kind).start_seconds
        for engine in started:
            _wait_healthy(engines.kind, engine, end)
        stack.enter_context(_watched(started))
        told = {"model": served.name, "start_seconds": kind_named(engines.kind).start_seconds}
        yield tuple(Endpoint(url=f"http://{LOOPBACK}:{engine.port}/v1", **told) for engine in started)


@contextmanager
def _watched(started: Sequence[_Engine]) -> Iterator[None]:
    """Look after the engines while the block runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            for engine in started:
                engine.revive()

    watcher = threading.Thread(target=watch, name="engines")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def command(engines: ManagedEngines, served: Served, port: int, gpus: str | None = None) -> list[str]:
    """Return the command line of one engine.

    Raises:
        EngineError: its program is not installed, or the target is not there in the form that it serves.
    """
    kind = kind_named(engines.kind)
    first, *words = kind.command.split()
    model, path = str(_model(engines.kind, served)), program(engines.kind, first.format(python=sys.executable))
    slots, context = engines.slots or kind.slots, engines.context or _context(kind, served)
    places = {
        "python": sys.executable,
        "model": model,
        "name": served.name,
        "port": str(port),
        "slots": str(slots),
        "context": str(context),
        "all_context": str(slots * context),
        "threads": str(_threads(engines, served)),
        "gpus": str(len(gpus.split(",")) if gpus else 1),
    }
    return [path, *(word.format_map(places) for word in words), *shlex.split(engines.arguments)]


def _context(kind: EngineKind, served: Served) -> int:
    """Return the tokens of a request: no more than a folder's model takes, else its engine does not start."""
    if kind.serves != "folder" or served.folder is None:
        return served.context
    return min(served.context, read_folder(served.folder).max_positions)


def number_of(engines: ManagedEngines, served: Served) -> int:
    """Return how many engines are started where no GPUs are named."""
    if engines.count is not None:
        return engines.count
    alike = kind_named(engines.kind).by_cores and served.threads is None and served.gguf is not None
    if not alike or _model(engines.kind, served).stat().st_size > SMALL_FILE:
        return 1
    return min(MOST_ALIKE, os.cpu_count() or 1)


def kind_named(name: str) -> EngineKind:
    """Return a row of `ENGINES`.

    Raises:
        UnknownNameError: there is no such row.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES)
    return ENGINES[name]


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def program(kind: str, name: str) -> str:
    """Return the path of an engine's program: on PATH, or installed beside the interpreter that runs this.

    Raises:
        EngineError: it is in neither place.
    """
    found = shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)
    if found is None:
        raise EngineError(f"engine {kind}: {name!r} is not on PATH; install it, or choose another engine with --engine")
    return found


def _model(kind: str, served: Served) -> Path:
    model = served.gguf if kind_named(kind).serves == "file" else served.folder
    if model is None or not model.exists():
        form = "GGUF file" if kind_named(kind).serves == "file" else "model folder"
        others = ", ".join(name for name, row in ENGINES.items() if row.serves != kind_named(kind).serves)
        raise EngineError(
            f"engine {kind} serves a {form}, and the target has none ({model}); take another one with --engine "
            f"({others}), or start one yourself and give --endpoint URL --model NAME"
        )
    return model


def _threads(engines: ManagedEngines, served: Served) -> int:
    return served.threads or max(1, (os.cpu_count() or 1) // number_of(engines, served))


def _variables(threads: int, gpus: str | None) -> dict[str, str]:
    threading = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return threading if gpus is None else {**threading, "CUDA_VISIBLE_DEVICES": gpus}


def _wait_healthy(kind: str, engine: _Engine, end: float) -> None:
    with httpx.Client(trust_env=False, timeout=5) as client:  # no proxy stands between a run and its own engine
        while time.monotonic() < end:
            try:
                child = engine.check()
            except ChildError as error:
                raise EngineError(f"engine {kind} did not start: {error}") from error
            try:
                if client.get(f"http://{LOOPBACK}:{engine.port}/health").is_success:
                    return
            except httpx.TransportError:  # not listening yet
                pass
            time.sleep(POLL_SECONDS)
    raise EngineError(f"engine {kind} was not healthy in time; see its log {child.log_path}")

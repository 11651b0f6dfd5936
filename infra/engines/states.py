"""vLLM engines that give states: the words that they are started with, and which version they are of."""

import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from deepspec.cache.spec import NO_SGLANG
from deepspec.errors import EngineError
from deepspec.families import read_folder
from deepspec.families.remembers import is_windowed
from deepspec.families.remembers import states as kept_states
from deepspec.states.wanted import layer_ids
from deepspec.target.heads import checkpoint_dtype
from deepspec.target.layers import check_layers, default_layers
from infra.engines.managed import PROMPT_ROOM, ManagedEngines, Served, program

KIND = "vllm"
CONNECTOR = Path(__file__).resolve().parents[1] / "connector"
"""Goes on the engine's PYTHONPATH: a folder with the connector's module and nothing else."""
ONE_TABLE = "--disable-hybrid-kv-cache-manager"
"""With it vLLM keeps one table of blocks for all layers. Else it keeps one for each kind where some slide, and a block
of any is as large as a dozen layers': of the states, the only layer of their kind, it holds a few tokens.
"""
_SHARED_MEMORY = Path("/dev/shm")
_ASK_VERSION = "from vllm.version import __version__; print(__version__)"
_SECONDS = 120.0


class Options(Protocol):
    """Which states are wanted: fields that a cache and answers with states have."""

    @property
    def layers(self) -> tuple[int, ...] | None:
        """Return the layers; None: those captured where nothing is said."""

    @property
    def dtype(self) -> str:
        """Return the precision, or `auto`."""

    @property
    def engine_quantization(self) -> str | None:
        """Return how the engine quantises the target."""

    @property
    def max_length(self) -> int:
        """Return the tokens of a sample at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatesServer:
    """What an engine must be told so that it gives the states of a cache."""

    options: Options
    folder: Path
    """The target."""
    staging: Path
    """Where it writes files of states."""
    answers: int = 0
    """Tokens of an answer, where it gives states with answers."""

    @property
    def context(self) -> int:
        """Return the tokens of a request: a sample and the one token that an engine has to answer, or an answer."""
        sample, answered = self.options.max_length + 1, self.answers + PROMPT_ROOM if self.answers else 0
        return min(max(sample, answered), read_folder(self.folder).max_positions)

    def words(self) -> list[str]:
        """Return the words of its command that are about states.

        Raises:
            TargetError: the target has no such layers.
        """
        shape = read_folder(self.folder)
        layers, config = shape.num_layers, shape.text_config
        chosen = self.options.layers or default_layers(layers)
        check_layers(chosen, layers, last=True)  # which drafts read it, the plan has checked
        dtype = checkpoint_dtype(self.folder) if self.options.dtype == "auto" else self.options.dtype
        quantized = self.options.engine_quantization
        return [
            "--dtype",
            dtype,
            *(["--quantization", quantized] if quantized else []),
            *([ONE_TABLE] if is_windowed(config) and not kept_states(config) else []),
            "--speculative-config",
            _json(_extracting(layer_ids(chosen, layers))),
            "--kv-transfer-config",
            _json(_connector(self.staging)),
        ]

    def command(self, host: str, port: int) -> str:
        """Return the command line of a server that is started by hand, for a shell."""
        served = ["--served-model-name", "target", "--host", host, "--port", str(port)]
        words = ["vllm", "serve", str(self.folder), *served, "--max-model-len", str(self.context), *self.words()]
        told = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables().items())
        return f"{told} {shlex.join(words)}"


def variables() -> dict[str, str]:
    """Return the variables that an engine needs to find the connector."""
    return {"PYTHONPATH": str(CONNECTOR)}


def staging_folder(scratch: Path) -> Path:
    """Return where engines of this user write states: in memory where that is a folder."""
    shared = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else scratch
    return shared / f"deepspec-states-{os.getuid()}"


def managed(engines: ManagedEngines, server: StatesServer) -> tuple[ManagedEngines, Served]:
    """Return the engines that a run starts for states, and what they serve.

    Raises:
        EngineError: the run was told to start engines of another kind.
    """
    if engines.kind != KIND and engines != ManagedEngines():
        raise EngineError(f"cache.states={KIND} and --engine {engines.kind}; give --engine {KIND}, or leave it out")
    arguments = f"{shlex.join(server.words())} {engines.arguments}".strip()
    served = Served(name="target", folder=server.folder, context=server.context, env=variables())
    return engines.model_copy(update={"kind": KIND, "arguments": arguments}), served


def engine_version(urls: Sequence[str]) -> str:
    """Return the version of the engines that run, or of the one that a run would start.

    Args:
        urls: of endpoints, up to /v1; none: that of the `vllm` on PATH.

    Raises:
        EngineError: one does not answer, they differ, or vLLM is not installed.
    """
    found = {url: _asked(url) for url in urls} if urls else {KIND: _installed()}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{url}: {version}" for url, version in found.items())
        raise EngineError(f"engines of several versions ({told}) make no one cache; start all of one version")
    return next(iter(found.values()))


def _asked(url: str) -> str:
    server = url.rstrip("/").removesuffix("/v1")
    with httpx.Client(trust_env=False, timeout=10) as client:
        if _is_sglang(client, server):
            raise EngineError(
                f"{server} is an SGLang server, and {NO_SGLANG}; start vLLM with what `deepspec engine-args` prints"
            )
        try:
            return str(client.get(f"{server}/version").raise_for_status().json()["version"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{url} does not say which version of vLLM it is ({error}), which is part of what a cache is; start "
                "it, or set cache.engine_version"
            ) from error


def _is_sglang(client: httpx.Client, server: str) -> bool:
    """Return whether a server calls itself SGLang; one that does not say whose its models are is none."""
    try:
        models = client.get(f"{server}/v1/models").json()["data"]
        return any(model.get("owned_by") == "sglang" for model in models)
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _installed() -> str:
    """Return what the interpreter of the `vllm` on PATH says: it may be another than this one."""
    path = Path(program(KIND, KIND))
    first = path.read_bytes().split(b"\n", 1)[0].decode(errors="replace")
    command = [first.removeprefix("#!").strip(), "-c", _ASK_VERSION]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{path} does not say its version ({error}); set cache.engine_version") from error
    return told.stdout.split()[-1]


def _extracting(ids: Sequence[int]) -> Mapping[str, object]:
    config = {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(ids)}}
    return {"method": "extract_hidden_states", "num_speculative_tokens": 1, "draft_model_config": config}


def _connector(staging: Path) -> Mapping[str, object]:
    return {
        "kv_connector": "StatesConnector",
        "kv_connector_module_path": "deepspec_states",
        "kv_role": "kv_producer",  # of a producer vLLM drops what it answered of a request whose blocks it had to take
        "kv_connector_extra_config": {"shared_storage_path": str(staging)},
    }


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))

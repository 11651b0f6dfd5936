"""The only reader of the environment: folders, secrets by name, and a quiet Prefect.

| variable | meaning | default |
|---|---|---|
| `DEEPSPEC_ROOT` | where artifacts are published, a folder or `s3://bucket/prefix` | `deepspec-data/store` |
| `DEEPSPEC_DATA_DIR` | local folder for models, scratch and logs | `deepspec-data` |
| `DEEPSPEC_HOME` | folder that runs of a worker work in; their relative paths begin there | the current one |
| `DEEPSPEC_PARTS_GB` | gigabytes of cache parts that scratch holds at most | 64 GiB |
| `DEEPSPEC_STAGING_GB` | gigabytes of states that engines are asked for and nobody has read yet, at most | 8 GiB |
| `DEEPSPEC_PATIENCE_SECONDS` | how long a run waits while no engine that it is given does anything | 600 |
| `DEEPSPEC_NODES` | machines that train together | 1 |
| `DEEPSPEC_FIRST_NODE` | `host:port` of the first of them | |
| `JOB_COMPLETION_INDEX` | number of this machine among them; Kubernetes sets it in an Indexed Job | 0 |
| `SLURM_NODEID` | the same, as Slurm's srun sets it | 0 |
| `CUDA_VISIBLE_DEVICES` | the cards that torch may see; read for messages only | all |
"""

import math
import os
import site
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepspec.errors import SpecError
from deepspec.placement import PARTS_LIMIT, STAGING_LIMIT
from infra.shipped import PACKAGES

_PREFECT_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
}


def data_dir() -> Path:
    """Return the local folder for everything that is not published."""
    return Path(os.environ.get("DEEPSPEC_DATA_DIR", "deepspec-data")).expanduser().resolve()


def work_dir() -> Path:
    """Return the folder that runs of a worker work in."""
    return Path(os.environ.get("DEEPSPEC_HOME", "")).expanduser().resolve()


def check_data_dir() -> Path:
    """Return the data folder, made where it is not there, once a file could be written into it.

    Raises:
        SpecError: none could.
    """
    folder = data_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"deepspec")
    except OSError as error:
        raise SpecError(
            f"the data folder {folder} cannot be written: {error.strerror}; set DEEPSPEC_DATA_DIR to one that can"
        ) from error
    return folder


def default_root() -> str:
    """Return the root that is used where none is named."""
    return os.environ.get("DEEPSPEC_ROOT", str(data_dir() / "store"))


def named_root(root: str | None) -> str:
    """Return the root that a user names, or the one that is used where none is.

    Raises:
        SpecError: it is named as nothing, as by a variable of a script that was never set: no store is meant then.
    """
    if root == "":
        raise SpecError("--root is empty: leave it out, or give it a value")
    return root or default_root()


def models_dir() -> Path:
    """Return where targets read from packages or the hub are kept."""
    return data_dir() / "models"


def scratch_dir() -> Path:
    """Return where ledgers, checkpoints in flight and fetched files are kept."""
    return data_dir() / "scratch"


def parts_limit() -> int:
    """Return the bytes of cache parts that scratch holds at most.

    Raises:
        SpecError: what is set is no number above 0.
    """
    return _gigabytes("DEEPSPEC_PARTS_GB", PARTS_LIMIT)


def staging_limit() -> int:
    """Return the bytes of states that engines may have been asked for before parts hold them.

    Raises:
        SpecError: what is set is no number above 0.
    """
    return _gigabytes("DEEPSPEC_STAGING_GB", STAGING_LIMIT)


def patience() -> float | None:
    """Return how many seconds a run waits while no engine does anything; None: it is not said.

    Raises:
        SpecError: what is set is no number above 0.
    """
    name = "DEEPSPEC_PATIENCE_SECONDS"
    return _above_zero(name, "seconds") if name in os.environ else None


def _gigabytes(name: str, default: int) -> int:
    return int(_above_zero(name, "gigabytes") * 1e9) if name in os.environ else default


def _above_zero(name: str, unit: str) -> float:
    told = os.environ[name]
    try:
        number = float(told)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise SpecError(f"{name} is {told!r}; wanted a number of {unit} above 0")
    return number


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """The machines that train together, and which of them this one is."""

    count: int
    number: int
    first: str


def nodes() -> Nodes:
    """Return the machines that train together.

    Raises:
        SpecError: there are several, and where the first one is reached is not said; or a number is none.
    """
    count = _whole("DEEPSPEC_NODES", "1")
    first = os.environ.get("DEEPSPEC_FIRST_NODE", "")
    if count > 1 and not first:
        raise SpecError(f"DEEPSPEC_NODES is {count} and DEEPSPEC_FIRST_NODE is not set; set it to host:port of node 0")
    number = "JOB_COMPLETION_INDEX" if os.environ.get("JOB_COMPLETION_INDEX") else "SLURM_NODEID"
    return Nodes(count=count, number=_whole(number, "0"), first=first)


def _whole(name: str, default: str) -> int:
    told = os.environ.get(name) or default
    if not (told.isascii() and told.isdigit()):
        raise SpecError(f"{name} is {told!r}; wanted a whole number")
    return int(told)


def secret(name: str) -> str:
    """Return a secret by the name of its environment variable.

    Raises:
        SpecError: the variable is not set; the message names it, never a value.
    """
    value = os.environ.get(name)
    if not value:
        raise SpecError(f"the environment variable {name}, named as an endpoint's key, is not set; export it first")
    return value


def server_auth() -> str | None:
    """Return `user:password` that a Prefect server asks for, as Prefect itself reads it; None: it asks for nothing."""
    return os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING")


def server_database() -> dict[str, str]:
    """Return the variables of a server that keeps its database in the data folder, unless it was told where."""
    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" in os.environ or "PREFECT_HOME" in os.environ:
        return {}
    return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{data_dir() / 'prefect.db'}"}


def visible_cards() -> str | None:
    """Return CUDA_VISIBLE_DEVICES, by which somebody has chosen among the cards; None: nobody has."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def prefect_api() -> str | None:
    """Return the Prefect server that this environment names."""
    return os.environ.get("PREFECT_API_URL")


def quiet_prefect() -> None:
    """Set what keeps Prefect from calling home and from talking over our own progress; what is set stays."""
    for name, value in _PREFECT_QUIET.items():
        os.environ.setdefault(name, value)


QUIET = {"MC_LOG_LEVEL": "ERROR"}
"""What Mooncake says of each call stays out of the logs; its errors do not."""


def torch_env(threads: int | None) -> dict[str, str]:
    """Return the variables for a child that computes: threads that sleep when idle, and how many.

    Without PASSIVE, spinning OpenMP threads starve whatever else runs on the machine.
    """
    env = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", **QUIET}
    return env if threads is None else {**env, "OMP_NUM_THREADS": str(threads)}


def use(variables: Mapping[str, str]) -> None:
    """Set variables for this process and its children: where a server that was just started is reached."""
    os.environ.update(variables)


def own_packages() -> dict[str, str]:
    """Return the variables under which a child finds these packages, whatever lies in the folder that it works in.

    `python -m` looks there first, where a project of Prefect's may well have its own `flows` or `tasks`.
    """
    installed = str(PACKAGES) in (*site.getsitepackages(), site.getusersitepackages())
    if installed:
        return {"PYTHONSAFEPATH": "1"}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(PACKAGES), *filter(None, given)]))}


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with some variables on top, for a child that is not under the guard."""
    return {**os.environ, **own_packages(), **extra}

"""Make a target ready: in this process where it is, in a child of its own where that needs torch or the network.

python -m infra.children.targets JOB.json
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from deepspec.errors import ChildError, DeepSpecError, TargetError, rebuilt
from deepspec.target.source import TargetFiles, TargetSource, find_target
from infra.children.child import emit, emit_error
from infra.processes.guard import EVENT
from infra.processes.launch import run_guarded
from infra.settings import models_dir, torch_env


class TargetJob(BaseModel):
    """What to make ready."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: TargetSource
    name: str
    models: Path


class _Found(BaseModel):
    event: str
    folder: Path | None = None
    gguf: Path | None = None
    type: str = ""
    message: str = ""


def ready_target(source: TargetSource, name: str) -> TargetFiles:
    """Return a target as local files, fetched or converted the first time.

    Args:
        source: where it comes from.
        name: its short name.

    Raises:
        TargetError: it is not there, cannot be fetched, or is no causal language model.
    """
    job = TargetJob(source=source, name=name, models=models_dir())
    found = find_target(source, job.models, name)
    return found if found is not None else _in_child(job)


def convert_target(source: TargetSource, name: str, say: Callable[[str], None]) -> None:
    """Make a target that comes as a GGUF file ready ahead of its run; one from the hub is asked for by the run alone.

    Args:
        source: where it comes from.
        name: its short name.
        say: told that it is made ready, where it is not yet.

    Raises:
        TargetError: see `ready_target`.
    """
    if source.is_gguf and find_target(source, models_dir(), name) is None:
        say(f"{name} is made ready for transformers, this once")
        ready_target(source, name)


def _in_child(job: TargetJob) -> TargetFiles:
    job.models.mkdir(parents=True, exist_ok=True)
    path, log = job.models / f"{job.name}.job.json", job.models / f"{job.name}.log"
    path.write_text(job.model_dump_json())
    told: list[_Found] = []

    def listen(line: str) -> None:
        if line.startswith(EVENT):
            with suppress(ValidationError):  # a line of the log that happens to look like one
                told.append(_Found.model_validate_json(line.removeprefix(EVENT)))

    command = [sys.executable, "-m", "infra.children.targets", str(path)]
    try:
        run_guarded(command, log_path=log, env=torch_env(None), on_line=listen)
    except ChildError as failure:
        raise _error(told) or failure from failure
    finally:
        path.unlink(missing_ok=True)
    if not told or told[-1].folder is None:
        raise TargetError(f"target {job.name}: preparing it gave nothing; its log is {log}")
    return TargetFiles(folder=told[-1].folder, gguf=told[-1].gguf)


def _error(told: list[_Found]) -> DeepSpecError | None:
    last = told[-1] if told else None
    return rebuilt(last.type, last.message) if last is not None and last.event == "error" else None


def main(arguments: list[str]) -> int:
    """Prepare the target of a job file and tell where it lies."""
    from deepspec.target.resolve import resolve_target  # loads torch: only in the child

    job = TargetJob.model_validate_json(Path(arguments[0]).read_bytes())
    try:
        files = resolve_target(job.source, job.models, job.name)
    except DeepSpecError as error:
        emit_error(error)
        return error.status
    emit(event="target", folder=str(files.folder), gguf=str(files.gguf) if files.gguf else None)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

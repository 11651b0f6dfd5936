"""Several ranks of one job, on one machine or on many: `python -m infra.children.ranks JOB.json LOG_FOLDER`.

torch's launcher starts them and lets them find each other. The first local rank speaks to the parent; every other one
writes files of its own below LOG_FOLDER. When a rank fails, the others are ended, and this process says in one line
which it was, where and how it ended, and what it printed last; and ends with its exit code (128 + number for a signal):
a parent can tell one that ran out of memory from a bug.
"""

import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from deepspec.errors import EXIT_CANCELLED, SIGNALLED
from infra.children.child import Job, emit
from infra.processes.launch import LAST_LINES
from infra.settings import Nodes, nodes

PATIENCE_SECONDS = 86400
"""How long the launcher waits for ranks that were asked to stop: the guard above ends them, after their grace period.
(Those that stand still since another one failed are given torch's thirty seconds.)"""


def launch_config(job: Job, machines: Nodes, logs: DefaultLogsSpecs) -> LaunchConfig:
    """Return what torch's launcher is asked to do; all machines of a job ask the same but for their number."""
    return LaunchConfig(
        min_nodes=machines.count,
        max_nodes=machines.count,
        nproc_per_node=job.placement.processes,
        run_id=f"deepspec-{job.stage}",
        rdzv_backend="static" if machines.count > 1 else "c10d",
        rdzv_endpoint=machines.first if machines.count > 1 else "localhost:0",
        rdzv_configs={"rank": machines.number, "timeout": 900},
        local_addr="localhost" if machines.count == 1 else None,
        max_restarts=0,
        logs_specs=logs,
    )


def run(job_file: Path, folder: Path) -> int:
    """Run a job's ranks to their end and return the exit code."""
    job = Job.model_validate_json(job_file.read_bytes())
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(PATIENCE_SECONDS)
    logs = DefaultLogsSpecs(log_dir=str(folder), redirects=dict.fromkeys(range(1, job.placement.processes), Std.ALL))
    try:
        elastic_launch(launch_config(job, nodes(), logs), sys.executable)("-m", "infra.children.child", str(job_file))
    except ChildFailedError as failure:
        rank, first = first_failure(failure.failures)
        line = ended(rank, job.placement.processes * nodes().count, first.exitcode)
        emit(event="log", message=line)
        _say(folder, first.local_rank, line)
        return first.exitcode if first.exitcode > 0 else SIGNALLED - first.exitcode
    except SignalException as stopped:
        return int(SIGNALLED + stopped.sigval)
    return 0


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Return the rank that failed first, and how.

    When a rank dies, those that wait for it lose their connection and fail within the same moment, or are asked to stop
    by the launcher. So one that a signal ended comes first, then one with a status of its own, then the rest; among
    equals the earliest.
    """
    rank = min(failures, key=lambda rank: (_consequence(failures[rank].exitcode), failures[rank].timestamp, rank))
    return rank, failures[rank]


def _consequence(code: int) -> int:
    """Return how much an exit code looks like that of a rank which ended because another one had: 0 is least."""
    if code in (-signal.SIGTERM, EXIT_CANCELLED):  # the launcher asked it to stop
        return 3
    if code in (-signal.SIGABRT, 1):  # NCCL's watchdog; a connection that was lost
        return 2
    return 0 if code < 0 else 1


def ended(rank: int, count: int, code: int) -> str:
    """Return which rank of how many ended, on which host and how, in one line."""
    how = f"ended with exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        how = f"was killed by {name}{' (out of memory is the usual cause)' if code == -signal.SIGKILL else ''}"
    return f"rank {rank} of {count} on {socket.gethostname()} {how}; the others were ended with it"


def _say(folder: Path, local_rank: int, line: str) -> None:
    """Say what a rank printed last, among it the event that names its error, where there is one; and then a line."""
    logs = sorted(folder.glob(f"*/attempt_*/{local_rank}/std*.log"))
    lines = [line for path in logs for line in path.read_text(errors="replace").splitlines()]
    sys.stdout.write("\n".join([*lines[-LAST_LINES + 1 :], line, ""]))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2])))
